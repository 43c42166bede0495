"""The data module of preference pairs: a chosen and a rejected response to a prompt."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from llm.data.base import Batch
from llm.data.errors import DataError
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Encoded, attended
from llm.data.examples.messages import is_transcript, messages_of, text_of
from llm.data.examples.shapes import PROMPT, record_shape, unknown_shape
from llm.data.examples.template import ChatTemplate, Message
from llm.data.malformed import Malformed
from llm.data.record_reader import Paths, Record, read_records, title
from llm.nn.ignore_index import IGNORE_INDEX


class Pair(NamedTuple):
    """Two responses to one prompt.

    Attributes:
        where: the file and line.
        prompt: the messages before the response; the last is the user's.
        chosen: the better response.
        rejected: the worse response.
    """

    where: str
    prompt: list[Message]
    chosen: str
    rejected: str


class PreferenceDataModule(ExamplesDataModule):
    """A data module of pairs: a batch has B rows with the chosen responses, then B with the rejected ones.

    A batch has `tokens`, `targets` and `attention_mask`, (2B, T) each. Targets are the tokens of the response, its
    end included; those of the shared prompt and of the padding on the right are ignored.

    A row of the file has `chosen` and `rejected`, each a text or a message, and a prompt in one of the shapes of
    InstructionDataModule: `prompt`, `instruction` or `messages`, whose last message is the user's. Or `chosen` and
    `rejected` are whole conversations, as messages or as transcripts (`Human: …`), which differ only in the last
    answer. Pairs of equal responses are left out. A warning lists fields that are not blank and not read.

    Args:
        template: how messages become tokens; its special tokens are added to the tokenizer.
        ignored: fields that no warning lists.
        shared: the arguments of `ExamplesDataModule`. `context_length` limits a prompt with one response, without
            the last token, which is only a target.

    Raises:
        ValueError: a parameter is out of range.
        DataError: a file cannot be used, or a row and `malformed` is `stop`.
    """

    kind = "preference pairs"

    def __init__(
        self, *, template: ChatTemplate, ignored: Sequence[str] = (), **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.template = template
        self.ignored = frozenset(ignored)
        self.equal = 0

    # Reading

    def read_file(self, path: Paths, malformed: Malformed) -> Iterator[Pair]:
        """Yield the pairs of files."""
        for row in read_records(path, self.layout, malformed=malformed):
            try:
                yield as_pair(row, self.template)
            except ValueError as error:
                malformed.add(row.where, str(error))
            else:
                self.note_unused(row.values, {*pair_fields(row.values), *self.ignored})

    def select(self, parts: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
        """Return the pairs whose responses differ."""
        kept = {part: [p for p in own if p.chosen != p.rejected] for part, own in parts.items()}
        self.equal = sum(map(len, parts.values())) - sum(map(len, kept.values()))
        for part, own in kept.items():
            if parts[part] and not own:
                raise DataError(
                    f"{title(self.files[part] or '')}: chosen and rejected are the same in all {len(parts[part]):,} "
                    "pairs, so none is preferred; give other pairs, or name the fields of the two responses with "
                    "'data.columns={chosen: …, rejected: …}'"
                )
        return kept

    def texts(self, example: Pair) -> Iterable[str]:
        """Return both conversations as text, without special tokens."""
        return [
            self.template.ordinary_text([*example.prompt, Message("assistant", response)])
            for response in (example.chosen, example.rejected)
        ]

    @property
    def special_tokens(self) -> Sequence[str]:
        """The special tokens of the template."""
        return self.template.special_tokens

    def content(self, example: Pair) -> object:
        """Return the prompt's messages and the responses."""
        return [[message[:2] for message in example.prompt], *example[2:]]

    def settings(self) -> object:
        """Return the template."""
        return asdict(self.template)  # pyright: ignore[reportArgumentType]

    def counted_in(self) -> dict[str, object]:
        """Return an empty dictionary: a loss is averaged over pairs, whatever the tokenizer."""
        return {}

    # Encoding

    def encode(self, example: Pair) -> Encoded:
        """Return both conversations, one after the other, and the index where the second begins.

        Raises:
            ValueError: a conversation does not fit the context.
        """
        chosen = self._encode("chosen", prompt=example.prompt, response=example.chosen)
        rejected = self._encode("rejected", prompt=example.prompt, response=example.rejected)
        joined = {name: chosen[name] + rejected[name] for name in chosen}
        return {**joined, "second": [len(chosen["tokens"])]}

    def _encode(self, what: str, *, prompt: Sequence[Message], response: str) -> Encoded:
        tokens, _ = self.template.encode([*prompt, Message("assistant", response)], self.tokenizer)
        start = len(self.template.encode_prompt(prompt, self.tokenizer))
        if len(tokens) - 1 > self.context_length:
            raise ValueError(
                f"the prompt and the {what} response have {start} + {len(tokens) - start} tokens, "
                f"which do not fit context_length={self.context_length}"
            )
        return {"tokens": tokens[:-1], "targets": [IGNORE_INDEX] * (start - 1) + tokens[start:]}

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return the chosen responses, then the rejected ones, padded to the longest."""
        pairs = [halves(example) for example in examples]
        rows = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        return attended(rows, self.collation.width(rows, self.context_length))

    def rows_of_a_model(self, part: str) -> Iterable[Encoded]:
        """Yield the chosen and the rejected conversation of each pair as rows."""
        return (half for example in self.encoded[part] for half in halves(example))

    def remarks(self) -> list[str]:
        """Return the number of pairs left out."""
        return [f"pairs of equal responses left out: {self.equal:,}"] if self.equal else []


def halves(example: Encoded) -> tuple[Encoded, Encoded]:
    """Return the chosen and the rejected conversation of an encoded pair."""
    second = example["second"][0]
    names = ("tokens", "targets")
    return {n: example[n][:second] for n in names}, {n: example[n][second:] for n in names}


def as_pair(row: Record, template: ChatTemplate) -> Pair:
    """Return a row of a file as a pair.

    Raises:
        ValueError: a field is missing, empty or of a wrong type.
    """
    values = row.values
    if not {"chosen", "rejected"} & {*values}:
        raise unknown_shape(values, ("prompt", "chosen", "rejected"))
    chosen, rejected = response_of(values, "chosen"), response_of(values, "rejected")
    shape = record_shape(values)
    if len(chosen) > 1 or len(rejected) > 1:
        prompt, chosen, rejected = split_pair(chosen, rejected)
        if shape is PROMPT and not same(PROMPT.read(values, template), prompt):
            raise ValueError(
                "prompt differs from the beginning of chosen and rejected; remove one of them"
            )
    elif shape is None:
        raise unknown_shape(values, ("prompt", "chosen", "rejected"))
    else:
        prompt = shape.read(values, template)
    template.require(prompt)
    if prompt[-1].role not in ("user", "tool"):
        raise ValueError("the last message is not the user's, so there is nothing to respond to")
    return Pair(row.where, prompt, chosen[0].content, rejected[0].content)


def response_of(values: Mapping[str, Any], key: str) -> list[Message]:
    """Return a response: text, a message, or the messages or the transcript of a whole conversation.

    Raises:
        ValueError: the value is none of these, or does not end with the assistant's message.
    """
    found = values.get(key)
    if isinstance(found, dict):
        messages = messages_of([found])
    elif isinstance(found, list) or (isinstance(found, str) and is_transcript(found)):
        messages = messages_of(found)
    else:
        return [Message("assistant", text_of(values, key))]
    if not messages or messages[-1].role != "assistant":
        raise ValueError(f"{key} does not end with the assistant's message")
    return messages


PromptAndResponses = tuple[list[Message], list[Message], list[Message]]


def split_pair(chosen: list[Message], rejected: list[Message]) -> PromptAndResponses:
    """Return the prompt that two conversations share, and the answers in which they differ.

    Raises:
        ValueError: the conversations differ before the last answer.
    """
    prompt = chosen[:-1]
    if rejected[:-1] != prompt:
        raise ValueError("chosen and rejected differ in more than the last answer")
    return prompt, chosen[-1:], rejected[-1:]


def same(given: list[Message], prompt: list[Message]) -> bool:
    """Return whether a prompt equals that of a conversation, with or without its system message."""
    return given == prompt or given == [m for m in prompt if m.role != "system"][-len(given) :]


def pair_fields(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields of a row that `as_pair` reads."""
    shape = record_shape(values)
    prompt = () if shape is None else (shape.name, *shape.optional)
    return (*prompt, "chosen", "rejected")
