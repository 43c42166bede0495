"""Instructions and their answers, and longer conversations: one question, one answer or several."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, cast

from llm.data.collation import Encoded, Padding
from llm.data.examples import ExamplesDataModule, TokenizerSpec
from llm.data.module import Batch
from llm.data.rows import Malformed, Paths, Row, read_rows
from llm.data.template import Message, Role, Template, require_order
from llm.nn.targets import IGNORED

# What other formats call the roles.
SPEAKERS: dict[str, Role] = {"human": "user", "gpt": "assistant"}


class Demonstration(NamedTuple):
    """A conversation that ends with the answer to learn.

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

    kind = "conversations"
    may_pack = True

    def __init__(
        self,
        path: Paths,
        tokenizer: TokenizerSpec,
        context_length: int,
        template: Template,
        collation: Padding,
        batch_size: int = 8,
        loss_on: Literal["response", "all"] = "response",
        malformed: Literal["stop", "skip"] = "stop",
        validation_fraction: float = 0.05,
        test_fraction: float = 0.1,
        validation_path: Paths | None = None,
        test_path: Paths | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(
            {"train": path, "validation": validation_path, "test": test_path},
            tokenizer,
            context_length,
            collation,
            batch_size,
            malformed,
            validation_fraction,
            test_fraction,
            seed,
            workers,
        )
        if loss_on not in ("response", "all"):
            raise ValueError(f"loss_on={loss_on}: give response or all")
        self.template, self.loss_on = template, loss_on

    def read_file(self, path: Paths, malformed: Malformed) -> Iterator[Demonstration]:
        """The rows of some files as conversations."""
        for row in read_rows(path, malformed=malformed):
            try:
                yield conversation_of(row, self.template)
            except ValueError as error:
                malformed.add(row.where, str(error))

    def texts(self, example: Demonstration) -> Iterable[str]:
        """The whole conversation as it is written down, without what is a token already."""
        return [self.template.ordinary_text(example.messages)]

    @property
    def special_tokens(self) -> Sequence[str]:
        """The template's."""
        return self.template.special_tokens

    def settings(self) -> object:
        """The template, and what is learned."""
        return {"template": asdict(self.template), "loss_on": self.loss_on}

    # Encoding

    def encode(self, example: Demonstration) -> Encoded:
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

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """`tokens` and `targets`, and of packed rows `documents` and `positions`: (B, T) each."""
        return self.collation.batch(examples, self.context_length)

    def remarks(self) -> list[str]:
        """How much there is to train on."""
        tokens = round(self.train_rows * self.tokens_per_row)
        return [f"{tokens:,} training tokens in {self.train_rows:,} rows"]


def conversation_of(row: Row, template: Template) -> Demonstration:
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
        context = optional_text_of(values, "input")
        answer = Message("assistant", text_of(values, "output"))
        messages = [*template.messages(instruction, context), answer]
        return Demonstration(row.where, messages, instruction, context)
    require_order(messages)
    if messages[-1].role != "assistant":
        raise ValueError("the last message is not the assistant's, so there is no answer to learn")
    return Demonstration(row.where, messages, messages[-2].content, "")


def messages_of(items: Any, role: str, content: str) -> list[Message]:
    """Messages from a list of objects with these two keys; a blank system message is none.

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"a list of objects with {role} and {content} is needed")
    messages = []
    for item in items:
        speaker = text_of(item, role)
        if speaker == "system" and not optional_text_of(item, content):
            continue
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


def optional_text_of(values: Mapping[str, Any], key: str) -> str:
    """The text under a key; empty where there is none, or it is blank.

    Raises:
        ValueError: there is something else.
    """
    found = values.get(key)
    blank = not (found.strip() if isinstance(found, str) else found)
    return "" if blank else text_of(values, key)
