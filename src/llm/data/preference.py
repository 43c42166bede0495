"""Pairs of responses to a prompt, of which people, or a model, chose one and rejected the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

from llm.data.collation import Encoded, Padding, attended
from llm.data.examples import ExamplesDataModule, TokenizerSpec
from llm.data.instruction import messages_of, optional_text_of, text_of
from llm.data.module import Batch
from llm.data.rows import Malformed, Paths, Row, read_rows
from llm.data.template import Message, Template, require_order
from llm.nn.targets import IGNORED


class Pair(NamedTuple):
    """Two responses to one prompt.

    Attributes:
        where: The file and the line it stands on.
        prompt: The messages that are responded to; the last is the user's.
        chosen: The better response.
        rejected: The worse one.
    """

    where: str
    prompt: list[Message]
    chosen: str
    rejected: str


class PreferenceDataModule(ExamplesDataModule):
    """Batches of pairs: B rows with the chosen responses, then B with the rejected ones, in their order.

    A batch has `tokens`, `targets` and `attention`, (2B, T) each. Targets are the response's tokens, its
    end included; the prompt, which both share, and the padding on the right ask for nothing.

    A row of the file is `{"instruction", "input", "chosen", "rejected"}` (the input may be missing), or
    `{"messages": [{"role", "content"}, …], "chosen", "rejected"}`, whose last message is the user's. Pairs
    of equal responses, which prefer nothing, are left out.

    Args:
        path: A JSON, JSON lines, CSV or TSV file, several, or a published file.
        tokenizer: As for ExamplesDataModule; the template's special tokens are added to it.
        context_length: The most tokens of a prompt with a response, but for the last, which is not read.
        template: How messages become tokens.
        collation: How far rows are filled up, and their order.
        batch_size: B, pairs in a batch.
        malformed: Whether rows that cannot be used `stop` the training or are left out (`skip`).
        validation_fraction: Share of the pairs to validate with.
        test_fraction: Share of the pairs to test with.
        validation_path: A file of its own for validation; nothing is taken from the first then.
        test_path: The same for the test.
        seed: Decides the split and the order.
        workers: Processes that gather batches.

    Raises:
        ValueError: A parameter is out of range.
        DataError: A file or, unless they are skipped, a row cannot be used.
    """

    kind = "preference pairs"

    def __init__(
        self,
        path: Paths,
        tokenizer: TokenizerSpec,
        context_length: int,
        template: Template,
        collation: Padding,
        batch_size: int = 8,
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
        self.template = template
        self.equal = 0

    # Reading

    def read_file(self, path: Paths, malformed: Malformed) -> Iterator[Pair]:
        """The pairs of some files."""
        for row in read_rows(path, malformed=malformed):
            try:
                yield as_pair(row, self.template)
            except ValueError as error:
                malformed.add(row.where, str(error))

    def select(self, parts: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
        """The pairs whose responses differ: of two equal ones none is better."""
        kept = {part: [p for p in own if p.chosen != p.rejected] for part, own in parts.items()}
        self.equal = sum(map(len, parts.values())) - sum(map(len, kept.values()))
        return kept

    def texts(self, example: Pair) -> Iterable[str]:
        """Both conversations as they are written down, without what is a token already."""
        return [
            self.template.ordinary_text([*example.prompt, Message("assistant", response)])
            for response in (example.chosen, example.rejected)
        ]

    @property
    def special_tokens(self) -> Sequence[str]:
        """The template's."""
        return self.template.special_tokens

    def settings(self) -> object:
        """The template."""
        return asdict(self.template)

    def counted_in(self) -> dict[str, object]:
        """A pair counts as one, however many tokens it has."""
        return {}

    # Encoding

    def encode(self, example: Pair) -> Encoded:
        """Both conversations, one after the other, and where the second begins.

        Raises:
            ValueError: one does not fit the context.
        """
        chosen = self._encode("chosen", example.prompt, example.chosen)
        rejected = self._encode("rejected", example.prompt, example.rejected)
        joined = {name: chosen[name] + rejected[name] for name in chosen}
        return {**joined, "second": [len(chosen["tokens"])]}

    def _encode(self, what: str, prompt: Sequence[Message], response: str) -> Encoded:
        tokens, _ = self.template.encode([*prompt, Message("assistant", response)], self.tokenizer)
        start = len(self.template.encode_prompt(prompt, self.tokenizer))
        if len(tokens) - 1 > self.context_length:
            raise ValueError(
                f"the prompt and the {what} response have {start} + {len(tokens) - start} tokens, "
                f"which do not fit context_length={self.context_length}"
            )
        return {"tokens": tokens[:-1], "targets": [IGNORED] * (start - 1) + tokens[start:]}

    def collate(self, examples: Sequence[Encoded]) -> Batch:
        """The chosen responses, then the rejected ones, filled up to the longest of all."""
        pairs = [halves(example) for example in examples]
        rows = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        return attended(rows, self.collation.width(rows, self.context_length))

    def remarks(self) -> list[str]:
        """What was left out."""
        return [f"{self.equal:,} of equal responses left out"] if self.equal else []


def halves(example: Encoded) -> tuple[Encoded, Encoded]:
    """The chosen and the rejected conversation of an encoded pair."""
    place = example["second"][0]
    names = ("tokens", "targets")
    return {n: example[n][:place] for n in names}, {n: example[n][place:] for n in names}


def as_pair(row: Row, template: Template) -> Pair:
    """A row of a file as a pair.

    Raises:
        ValueError: something is missing, empty or of a wrong kind.
    """
    values = row.values
    chosen, rejected = text_of(values, "chosen"), text_of(values, "rejected")
    if "messages" in values:
        prompt = messages_of(values["messages"], "role", "content")
        require_order(prompt)
        if prompt[-1].role != "user":
            raise ValueError(
                "the last message is not the user's, so there is nothing to respond to"
            )
    else:
        context = optional_text_of(values, "input")
        prompt = template.messages(text_of(values, "instruction"), context)
    return Pair(row.where, prompt, chosen, rejected)
