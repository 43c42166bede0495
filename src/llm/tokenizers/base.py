"""The interface of all tokenizers, and functions to load and fit one."""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from llm.files import FileError, read_json, write_text

END_OF_TEXT = "<|endoftext|>"

# Kinds that a saved file may name, so that it cannot import other code.
KINDS = {
    "byte": "ByteTokenizer",
    "char": "CharTokenizer",
    "word": "WordTokenizer",
    "bpe": "BPETokenizer",
    "huggingface": "HuggingFaceTokenizer",
    "wordpiece": "WordPieceTokenizer",
}


class Tokenizer(ABC):
    """A map between text and token ids `0 … vocab_size - 1`.

    A lone surrogate, which UTF-8 cannot encode, becomes U+FFFD.

    Args:
        tokens: the UTF-8 bytes of each ordinary token, in the order of the ids.
        special_tokens: the names of the special tokens, whose ids follow.

    Attributes:
        kind: name of the kind in a saved file and of its module.
        lossless: whether `decode(encode(text))` is `text` for all text that the tokenizer knows.
        context: number of preceding tokens that can change how a token is decoded; None for all.
        special_tokens: the ids of the tokens that do not encode text, by name.

    Raises:
        ValueError: the name of a special token is empty or occurs twice.
    """

    kind: ClassVar[str]
    lossless: ClassVar[bool] = True
    context: ClassVar[int | None] = 4

    def __init__(
        self, tokens: Sequence[bytes], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> None:
        names = [name.encode() for name in special_tokens]
        if b"" in names or len(set(names)) < len(names):
            raise ValueError(
                f"special_tokens: {list(special_tokens)} has an empty or repeated name; give each once"
            )
        self.special_tokens = {name: len(tokens) + n for n, name in enumerate(special_tokens)}
        # A dictionary rather than a list: the id -1 must raise, not return the last token.
        self._bytes: dict[int, bytes] = dict(enumerate([*tokens, *names]))

    @property
    def vocab_size(self) -> int:
        """The number of ids, including special tokens."""
        return len(self._bytes)

    @property
    def end_of_text(self) -> int | None:
        """The id of the token that separates documents, if there is one."""
        return self.special_tokens.get(END_OF_TEXT)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids that end generation: `end_of_text` and those of a published model."""
        return frozenset() if self.end_of_text is None else frozenset({self.end_of_text})

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a well-formed text; names of special tokens are plain text."""

    def state(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data: the attributes of these names."""
        state = {name: getattr(self, name) for name in signature(type(self)).parameters}
        return {**state, "special_tokens": list(self.special_tokens)}

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """Return a tokenizer with additional special tokens, whose ids follow the last one.

        Args:
            names: existing ones keep their ids.

        Raises:
            ValueError: a name is empty.
        """
        special_tokens = list(dict.fromkeys([*self.special_tokens, *names]))
        if len(special_tokens) == len(self.special_tokens):
            return self
        return type(self)(**{**self.state(), "special_tokens": special_tokens})

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """The ids that a model expects before and after every text; usually none."""
        return [], []

    def with_ends(self, ids: Sequence[int], most: int) -> list[int]:
        """Add `ends` to the ids of a text, cut so that the result has at most `most` ids."""
        before, after = self.ends
        return [*before, *ids[: max(0, most - len(before) - len(after))], *after]

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any text.
            special: encode names of special tokens, such as `<|endoftext|>`, as those tokens. Not for untrusted
                text, which could then end a document.
        """
        text = replace_surrogates(text)
        if not special or not self.special_tokens:
            return self.encode_ordinary(text)
        # Longest first: the name of one special token may begin with that of another.
        names = sorted(self.special_tokens, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            token = self.special_tokens.get(part)
            ids.extend(self.encode_ordinary(part) if token is None else [token])
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of several texts."""
        return [self.encode(text) for text in texts]

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token; for a special token those of its name.

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        return self._spell([token])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; bytes that are not valid UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        return self._spell(ids).decode("utf-8", errors="replace")

    def decode_settled(self, ids: Sequence[int]) -> str:
        """Return the beginning of `decode(ids)` that no further id can change, for streaming.

        By default only an incomplete UTF-8 character at the end is left out.

        Raises:
            ValueError: an id is not in the vocabulary.
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

    def to_json(self) -> str:
        """Return the content of a saved file."""
        return json.dumps({"kind": self.kind, **self.state()})

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file, atomically."""
        write_text(Path(path), self.to_json())

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"


def replace_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def ends_within_character(data: bytes) -> bool:
    """Return whether UTF-8 bytes end with an incomplete character, which decodes to one U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return bool(decoder.getstate()[0])


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save` wrote. No code in the file is executed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged or its kind is unknown.
    """
    try:
        state = read_json(Path(path))
    except FileError as error:
        raise ValueError(f"{path}: is not a tokenizer file ({error}); train it again") from error
    kind = state.pop("kind", None) if isinstance(state, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path}: unknown tokenizer kind {kind!r}; use one of {', '.join(KINDS)}")
    tokenizer = getattr(import_module(f"llm.tokenizers.{kind}"), KINDS[kind])
    try:
        return tokenizer(**state)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: the {kind} tokenizer is damaged ({error}); train it again"
        ) from error


TokenizerSpec = Tokenizer | Callable[[Iterable[str]], Tokenizer]


def fit(spec: TokenizerSpec, texts: Iterable[str]) -> Tokenizer:
    """Return `spec` if it is a tokenizer, otherwise the tokenizer that it trains on the texts."""
    return spec if isinstance(spec, Tokenizer) else spec(texts)
