"""What every tokenizer promises, and how one is saved, loaded and fitted to text."""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from llm.files import FileError, read_json, replacing

END_OF_TEXT = "<|endoftext|>"

# A file names its kind and may choose from these only: reading a stranger's file imports nothing of theirs.
KINDS = {
    "byte": "ByteTokenizer",
    "char": "CharTokenizer",
    "word": "WordTokenizer",
    "bpe": "BPETokenizer",
    "huggingface": "HuggingFaceTokenizer",
    "wordpiece": "WordPieceTokenizer",
}


class Tokenizer(ABC):
    """Turns text into token ids `0 … vocab_size - 1` and back.

    A lone surrogate, half of a character that no UTF-8 can hold, becomes U+FFFD when it is encoded.

    Args:
        tokens: The UTF-8 bytes of each ordinary token, in the order of their ids.
        special_tokens: The names of the special tokens, whose ids follow.

    Attributes:
        kind: The name of the kind in a saved file, which is also the name of its module.
        lossless: Whether `decode(encode(text))` is `text` for all text that the tokenizer knows.
        context: Number of tokens before a token that can change how it is spelled; None if all of them can.
        special_tokens: The tokens that stand for no text of a document, with their ids.

    Raises:
        ValueError: A special token is empty or named twice.
    """

    kind: ClassVar[str]
    lossless: ClassVar[bool] = True
    context: ClassVar[int | None] = 4

    def __init__(
        self, tokens: Sequence[bytes], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> None:
        names = [name.encode() for name in special_tokens]
        if b"" in names or len(set(names)) < len(names):
            raise ValueError(f"special_tokens must differ and not be empty: {list(special_tokens)}")
        self.special_tokens = {name: len(tokens) + n for n, name in enumerate(special_tokens)}
        # A dictionary, for -1 must not be the last token.
        self._bytes: dict[int, bytes] = dict(enumerate([*tokens, *names]))

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(self._bytes)

    @property
    def end_of_text(self) -> int | None:
        """The id of the token that separates documents, if there is one."""
        return self.special_tokens.get(END_OF_TEXT)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids at which writing ends: `end_of_text`, and what else a published model ends a text with."""
        return frozenset() if self.end_of_text is None else frozenset({self.end_of_text})

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a well-formed text; the text of a special token is text like any other."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The constructor's arguments as plain data: all that a saved file holds beside the kind."""

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """The same tokenizer with further special tokens, whose ids follow the last one.

        Args:
            names: what the special tokens are called; those that it has already are kept as they are.

        Raises:
            ValueError: a name is empty.
        """
        special_tokens = list(dict.fromkeys([*self.special_tokens, *names]))
        if len(special_tokens) == len(self.special_tokens):
            return self
        return type(self)(**{**self.state(), "special_tokens": special_tokens})

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """The ids that a model of this tokenizer expects before and after every text; most expect none."""
        return [], []

    def with_ends(self, ids: Sequence[int], most: int) -> list[int]:
        """A whole text as a model expects it, at most so many ids: the end of a longer text is left out."""
        before, after = self.ends
        return [*before, *ids[: max(0, most - len(before) - len(after))], *after]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text.
            special: Read the text of special tokens, such as `<|endoftext|>`, as those tokens. Off for
                text that others wrote: it must not be able to end a document.
        """
        text = well_formed(text)
        if not special or not self.special_tokens:
            return self.encode_ordinary(text)
        # Longest first, for one special token may begin with another.
        names = sorted(self.special_tokens, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            token = self.special_tokens.get(part)
            ids.extend(self.encode_ordinary(part) if token is None else [token])
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of several texts, each as `encode` gives them."""
        return [self.encode(text) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token decodes to; those of a special token spell its name.

        Raises:
            ValueError: The id is not in the vocabulary.
        """
        return self._spell([token])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return self._spell(ids).decode("utf-8", errors="replace")

    def decode_settled(self, ids: Sequence[int]) -> str:
        """The beginning of `decode(ids)` that no further id can change.

        By default that is all but the first bytes of a character whose last byte is still missing.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return self.decode(ids)[: -1 if ends_within_character(self._spell(ids[-4:])) else None]

    def _spell(self, ids: Sequence[int]) -> bytes:
        try:
            return b"".join([self._bytes[token] for token in ids])
        except KeyError as error:
            raise ValueError(
                f"token id {error} is outside the vocabulary: "
                f"{self!r} has ids 0 to {self.vocab_size - 1}"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to one JSON file, whole or not at all."""
        with replacing(Path(path)) as partial:
            partial.write_text(json.dumps({"kind": self.kind, **self.state()}), encoding="utf-8")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def ends_within_character(data: bytes) -> bool:
    """Whether bytes of UTF-8 end with some, but not all, bytes of a character: decoded, one U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return bool(decoder.getstate()[0])


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save` wrote. The file is data: nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of an unknown kind; the message names it.
    """
    try:
        state = read_json(Path(path))
    except FileError as error:
        raise ValueError(f"{path} is not a tokenizer file: {error}") from error
    kind = state.pop("kind", None) if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"{path} holds a tokenizer of unknown kind {kind!r}: not {', '.join(KINDS)}"
        )
    tokenizer = getattr(import_module(f"llm.tokenizers.{kind}"), KINDS[kind])
    try:
        return tokenizer(**state)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a damaged {kind} tokenizer: {error}") from error


def fit(spec: Tokenizer | Callable[[Iterable[str]], Tokenizer], texts: Iterable[str]) -> Tokenizer:
    """The tokenizer itself where it is finished already, or one trained on the texts."""
    return spec if isinstance(spec, Tokenizer) else spec(texts)
