"""Instructions and their answers, and longer conversations: one question, one answer or several."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from torch.utils.data import Sampler

from llm.data.collation import Encoded, Padding
from llm.data.download import Download, fetch
from llm.data.errors import DataError
from llm.data.examples import ExamplesDataModule
from llm.data.fingerprint import digest
from llm.data.module import Batch
from llm.data.rows import Malformed, Row, read_rows
from llm.data.split import split_examples
from llm.data.template import Message, Role, Template, require_order
from llm.data.windows import IGNORED
from llm.tokenizers.tokenizer import Tokenizer

Paths = str | Path | Sequence[str | Path]
# What other formats call the roles.
SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant"}


class Conversation(NamedTuple):
    """A conversation that ends with an answer.

    Attributes:
        where: the file and the line it stands on.
        messages: all of them; the last is the answer to learn.
        instruction: what was asked last.
        context: the input that the instruction is about; often empty.
    """

    where: str
    messages: list[Message]
    instruction: str
    context: str

    @property
    def prompt(self) -> list[Message]:
        """The messages that the last answer answers."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The last answer."""
        return self.messages[-1].content


class InstructionDataModule(ExamplesDataModule):
    """Batches of conversations, in which a model learns to answer.

    A row of the file is an instruction, `{"instruction", "input", "output"}` (the input may be missing),
    or a conversation, `{"messages": [{"role", "content"}, …]}` or `{"conversations": [{"from", "value"},
    …]}`, which ends with the assistant.

    Args:
        path: A JSON, JSON lines, CSV or TSV file, or several, or one to download.
        tokenizer: As for ExamplesDataModule; the template's special tokens are added to it.
        context_length: The most tokens a conversation may have, but for the last, which is not read.
        template: How messages become tokens.
        collation: How examples become batches.
        batch_size: B, rows in a batch.
        loss_on: What is learnt: the assistant's answers (`response`), or every token (`all`).
        malformed: Whether rows that cannot be used `stop` the training or are left out (`skip`).
        validation_fraction: Share of the conversations to validate with.
        test_fraction: Share of the conversations to test with.
        validation_path: A file of its own for validation; nothing is taken from the first then.
        test_path: The same for the test.
        seed: Decides the split and the order.
        workers: Processes that gather batches.

    Raises:
        ValueError: A parameter is out of range.
        DataError: A file or, unless they are skipped, a row cannot be used.
    """

    def __init__(
        self,
        path: Paths | Download,
        tokenizer: Tokenizer | Callable[[Iterable[str]], Tokenizer],
        context_length: int,
        template: Template,
        collation: Padding,
        batch_size: int = 8,
        loss_on: Literal["response", "all"] = "response",
        malformed: Literal["stop", "skip"] = "stop",
        validation_fraction: float = 0.05,
        test_fraction: float = 0.1,
        validation_path: Paths | Download | None = None,
        test_path: Paths | Download | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(tokenizer, context_length, batch_size, seed, workers)
        if loss_on not in ("response", "all"):
            raise ValueError(f"loss_on={loss_on}: give response or all")
        self.path = path
        self.files: dict[str, Paths | Download | None] = {
            "train": path,
            "validation": validation_path,
            "test": test_path,
        }
        self.fractions = {"validation": validation_fraction, "test": test_fraction}
        for part, fraction in self.fractions.items():
            if not 0 <= fraction < 1:
                raise ValueError(f"{part}_fraction={fraction}: give 0 or more, and less than 1")
        self.template, self.collation = template, collation
        self.loss_on = loss_on
        self.malformed: Literal["stop", "skip"] = malformed
        Malformed(malformed)  # refuses another word before anything is read

    # Reading

    def read(self) -> dict[str, list[Conversation]]:
        """The conversations of each part."""
        malformed = Malformed(self.malformed)
        parts = {
            part: list(read_conversations(path, self.template, malformed))
            for part, path in self.files.items()
            if path is not None
        }
        malformed.close("conversations")
        return parts | self._split(parts["train"], parts.keys())

    def _split(
        self, conversations: list[Conversation], given: Iterable[str]
    ) -> dict[str, list[Conversation]]:
        """The training part, and those taken from it for want of a file of their own."""
        fractions = {part: share for part, share in self.fractions.items() if part not in given}
        rest = 1 - sum(fractions.values())
        places = split_examples([0] * len(conversations), {"train": rest, **fractions}, self.seed)
        return {part: [conversations[at] for at in chosen] for part, chosen in places.items()}

    def texts(self, example: Conversation) -> Iterable[str]:
        """The whole conversation as it is written down, without what is a token already."""
        text = self.template.render(example.messages)
        for token in self.special_tokens:
            text = text.replace(token, "")
        return [text]

    @property
    def special_tokens(self) -> Sequence[str]:
        """The template's."""
        return self.template.special_tokens

    def settings(self) -> object:
        """The files, the template, and what decides the rows."""
        return {
            "files": {part: digests(path) for part, path in self.files.items() if path},
            "fractions": self.fractions,
            "template": asdict(self.template),
            "loss_on": self.loss_on,
            "collation": [type(self.collation).__name__, vars(self.collation)],
        }

    # Encoding

    def encode(self, example: Conversation) -> Encoded:
        """The tokens, and after each the target: the next one, where it is to be learnt.

        Raises:
            ValueError: there are more tokens than fit the context.
        """
        tokens, is_response = self.template.encode(example.messages, self.tokenizer)
        if len(tokens) - 1 > self.context_length:
            prompt = is_response.index(True)
            raise ValueError(
                f"prompt and response have {prompt} + {len(tokens) - prompt} tokens, which do not fit "
                f"context_length={self.context_length}"
            )
        asked = is_response if self.loss_on == "response" else [True] * len(tokens)
        targets = [
            token if learnt else IGNORED for token, learnt in zip(tokens, asked, strict=True)
        ]
        return {"tokens": tokens[:-1], "targets": targets[1:]}

    def encode_part(self, part: str, examples: Sequence[Conversation]) -> list[Encoded]:
        """The rows of a part; conversations longer than the context are malformed."""
        malformed = Malformed(self.malformed)
        fitting, encoded = [], []
        for example in examples:
            try:
                encoded.append(self.encode(example))
                fitting.append(example)
            except ValueError as error:
                malformed.add(example.where, str(error))
        malformed.close(f"conversations of the {part} part")
        if not fitting and part != "test":
            raise DataError(
                f"{title(self.path)}: the {part} part has no conversation: give more of them, or change "
                "data.validation_fraction and data.test_fraction"
            )
        self.raw[part] = fitting
        return self.collation.arrange(encoded, self.context_length)

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """`tokens` and `targets`, and of packed rows `documents` and `positions`: (B, T) each."""
        return self.collation.batch(examples, self.context_length)

    def training_sampler(self, start: int, rank: int, world_size: int) -> Sampler:
        """The order of training, which is the collation's."""
        lengths = [len(row["tokens"]) for row in self.encoded["train"]]
        sampler = self.collation.sampler(lengths)
        return sampler(self.batch_size, self.seed, start, rank, world_size)

    def describe(self) -> str:
        """One line that says what the data are."""
        numbers = " + ".join(f"{len(self.raw.get(p, [])):,}" for p in ("train", *self.fractions))
        rows, tokens = self.train_rows, round(self.train_rows * self.tokens_per_row)
        return (
            f"{title(self.path)}: {numbers} conversations (training + validation + test), "
            f"{tokens:,} training tokens in {rows:,} rows"
        )


def read_conversations(
    path: Paths | Download, template: Template, malformed: Malformed
) -> Iterator[Conversation]:
    """The rows of some files as conversations; those that are none are noted."""
    for row in read_rows(files_of(path), malformed=malformed):
        try:
            yield conversation_of(row, template)
        except ValueError as error:
            malformed.add(row.where, str(error))


def conversation_of(row: Row, template: Template) -> Conversation:
    """A row of one of the three shapes as a conversation.

    Raises:
        ValueError: it has none of the shapes, or a conversation of it would not end with an answer.
    """
    values = row.values
    if "messages" in values:
        messages = messages_of(values["messages"], "role", "content")
    elif "conversations" in values:
        messages = messages_of(values["conversations"], "from", "value")
    else:
        instruction = text_of(values, "instruction")
        context = text_of(values, "input") if values.get("input") else ""
        answer = Message("assistant", text_of(values, "output"))
        messages = [*template.messages(instruction, context), answer]
        return Conversation(row.where, messages, instruction, context)
    require_order(messages)
    if messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's, so there is no answer to learn")
    return Conversation(row.where, messages, messages[-2].content, "")


def messages_of(items: Any, role: str, content: str) -> list[Message]:
    """Messages from a list of objects with these two keys.

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"a list of objects with {role} and {content} is needed")
    messages = []
    for item in items:
        speaker = text_of(item, role)
        messages.append(Message(cast(Role, SPEAKERS.get(speaker, speaker)), text_of(item, content)))
    return messages


def text_of(values: Mapping[str, Any], key: str) -> str:
    """The text under a key.

    Raises:
        ValueError: there is none, or it is blank.
    """
    if key not in values:
        raise ValueError(f"{key} is missing; there is {', '.join(map(str, values)) or 'nothing'}")
    text = values[key]
    if not isinstance(text, str):
        raise ValueError(f"{key} is {type(text).__name__}, not text")
    if not text.strip():
        raise ValueError(f"{key} is empty")
    return text


def files_of(path: Paths | Download) -> Sequence[str | Path]:
    """The files on this machine, fetched if need be."""
    if isinstance(path, Download):
        return [fetch(path.url, path.sha256, path.file_name)]
    return [path] if isinstance(path, str | Path) else path


def title(path: Paths | Download) -> str:
    """What the files are called, for people."""
    return path.name if isinstance(path, Download) else ", ".join(map(str, files_of(path)))


def digests(path: Paths | Download) -> Sequence[str]:
    """What the files hold, in a few characters each."""
    if isinstance(path, Download):
        return [path.sha256]
    return [digest(Path(file).expanduser().read_bytes()) for file in files_of(path)]
