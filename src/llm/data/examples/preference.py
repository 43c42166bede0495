"""The data module of preference pairs: a chosen and a rejected response to a prompt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from llm.data.corpora.windows import Batch
from llm.data.errors import DataError
from llm.data.examples.base import ExamplesDataModule
from llm.data.examples.collation import Encoded, pad_with_mask
from llm.data.examples.messages import get_text, is_transcript, parse_messages, unused_fields
from llm.data.examples.shapes import PROMPT, record_shape, unknown_shape
from llm.data.examples.template import ChatTemplate, Message
from llm.data.record_reader import Record, title
from llm.nn.ignore_index import IGNORE_INDEX

FIELDS = ("prompt", "chosen", "rejected")


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
    """A data module of pairs of responses.

    A batch has `tokens`, `targets` and `attention_mask`, (2B, T) each: B rows with the chosen responses, then B with
    the rejected ones. Targets are the tokens of the response, including its end; those of the prompt and of the
    padding on the right are ignored.

    A row of the file has `chosen` and `rejected`, each a text or a message, and a prompt that ends with the user's
    message, in one of the shapes of InstructionDataModule. Alternatively, `chosen` and `rejected` are whole
    conversations, as messages or as transcripts (`Human: …`), which differ only in the last response. Pairs of equal
    responses are left out. A warning lists the fields that have a value but are not read.

    Args:
        template: the chat template; its special tokens are added to the tokenizer.
        ignored: fields to leave out of the warning.
        shared: the arguments of `ExamplesDataModule`. `context_length` limits a prompt with one response, without
            the last token, which is only a target.
    """

    kind = "preference pairs"
    averages_tokens = False

    def __init__(
        self, *, template: ChatTemplate, ignored: Sequence[str] = (), **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.template, self.ignored = template, ignored
        self.special_tokens = template.special_tokens
        self.equal = 0

    # Reading

    def parse(self, row: Record) -> Pair:
        """Return a row of a file as a pair.

        Raises:
            ValueError: a field is missing, empty or of a wrong type.
        """
        values, shape = row.values, record_shape(row.values)
        if not {"chosen", "rejected"} & {*values}:
            raise unknown_shape(values, FIELDS)
        chosen, rejected = parse_response(values, "chosen"), parse_response(values, "rejected")
        if len(chosen) > 1 or len(rejected) > 1:
            prompt = chosen[:-1]
            if rejected[:-1] != prompt:
                raise ValueError("chosen and rejected differ in more than the last response")
            if shape is PROMPT and not is_same_prompt(PROMPT.read(values, self.template), prompt):
                raise ValueError("prompt differs from the start of chosen and rejected; remove one")
        elif shape is None:
            raise unknown_shape(values, FIELDS)
        else:
            prompt = shape.read(values, self.template)
        self.template.require(prompt)
        if prompt[-1].role not in ("user", "tool"):
            raise ValueError("the last message is not the user's: there is nothing to respond to")
        return Pair(row.where, prompt, chosen[-1].content, rejected[-1].content)

    def unread(self, values: Mapping[str, Any]) -> Iterable[str]:
        """Return the names of the fields that have a value but are neither read nor ignored."""
        shape = record_shape(values)
        prompt = () if shape is None else (shape.name, *shape.optional)
        return unused_fields(values, (*prompt, "chosen", "rejected", *self.ignored))

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

    def content(self, example: Pair) -> object:
        """Return the prompt's messages and the responses."""
        return [[message[:2] for message in example.prompt], *example[2:]]

    def settings(self) -> object:
        """Return the template."""
        return asdict(self.template)  # pyright: ignore[reportArgumentType]

    # Encoding

    def encode(self, example: Pair) -> Encoded:
        """Return both conversations joined, and the index at which the second begins.

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
        what = f"the prompt and the {what} response"
        self.require_fit(what, prompt=start, tokens=len(tokens))
        return {"tokens": tokens[:-1], "targets": [IGNORE_INDEX] * (start - 1) + tokens[start:]}

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """Return the chosen responses, then the rejected ones, padded to the longest."""
        pairs = [split_halves(example) for example in examples]
        rows = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        return pad_with_mask(rows, self.collation.width(rows, self.context_length))

    def model_rows(self, part: str) -> Iterable[Encoded]:
        """Yield the chosen and the rejected conversation of each pair as rows."""
        return (half for example in self.encoded[part] for half in split_halves(example))

    def remarks(self) -> list[str]:
        """Return the number of pairs left out."""
        return [f"pairs of equal responses left out: {self.equal:,}"] if self.equal else []


def split_halves(example: Encoded) -> tuple[Encoded, Encoded]:
    """Return the chosen and the rejected conversation of an encoded pair."""
    second = example["second"][0]
    names = ("tokens", "targets")
    return {n: example[n][:second] for n in names}, {n: example[n][second:] for n in names}


def parse_response(values: Mapping[str, Any], key: str) -> list[Message]:
    """Return a response: text, a message, or the messages or the transcript of a whole conversation.

    Raises:
        ValueError: the value is none of these, or does not end with the assistant's message.
    """
    found = values.get(key)
    if isinstance(found, dict):
        messages = parse_messages([found])
    elif isinstance(found, list) or (isinstance(found, str) and is_transcript(found)):
        messages = parse_messages(found)
    else:
        return [Message("assistant", get_text(values, key))]
    if not messages or messages[-1].role != "assistant":
        raise ValueError(f"{key} does not end with the assistant's message")
    return messages


def is_same_prompt(given: list[Message], prompt: list[Message]) -> bool:
    """Return whether `given` is the prompt, or the end of it without its system message."""
    return given == prompt or given == [m for m in prompt if m.role != "system"][-len(given) :]
