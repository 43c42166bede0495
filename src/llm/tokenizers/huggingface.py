"""Any tokenizer that the Rust library `tokenizers` describes: what published models bring with them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import tokenizers

from llm.tokenizers.base import Tokenizer, well_formed
from llm.tokenizers.bpe import BYTES
from llm.tokenizers.gpt2 import CHARACTERS

# The largest vocabularies that are published have some 260 thousand; each id is a row of a model's tables.
MOST_IDS = 2**22

Spell = Callable[[str], bytes]


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json as it stands. What it puts around a text is not part of `encode`, see `ends`.

    Where its ids leave gaps, the missing ones stand for no text.

    Args:
        definition: the content of a tokenizer.json.
        end_of_text: the name of the special token that ends a text, if there is one.
        end_tokens: the ids at which the model stops writing, beside that one.

    Raises:
        ValueError: the definition cannot be read, or has no such special token.
    """

    kind = "huggingface"
    lossless = False  # most of them normalise

    def __init__(
        self, definition: str, end_of_text: str | None = None, *, end_tokens: Sequence[int] = ()
    ) -> None:
        try:
            self._backend = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises no narrower one
            raise ValueError(f"definition is not a tokenizer.json: {error}") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens = {t.content: i for i, t in sorted(added.items()) if t.special}
        if end_of_text is not None and end_of_text not in self.special_tokens:
            raise ValueError(f"end_of_text={end_of_text} is not one of {list(self.special_tokens)}")
        self._end_of_text = end_of_text
        self._end_tokens = frozenset(end_tokens)
        ids = self._backend.get_vocab(with_added_tokens=True)
        if (largest := max(ids.values(), default=-1)) >= MOST_IDS:
            raise ValueError(
                f"definition has the id {largest:,}; {MOST_IDS:,} are the most there can be"
            )
        decoder = json.loads(definition).get("decoder")
        spell = _spelling(decoder)
        falls_back = any(part.get("type") == "ByteFallback" for part in _parts(decoder or {}))
        # Bytes beside each other are decoded together: one that is wrong spoils them all.
        self._byte_tokens = {i for name, i in ids.items() if falls_back and _byte_of(name)}
        self._bytes = dict.fromkeys(range(largest + 1), b"")
        self._bytes |= {token: spell(name) for name, token in ids.items()}
        self._bytes |= {token: added.content.encode() for token, added in added.items()}
        self._ends = self._find_ends()

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """What the definition puts around every text, such as Llama's beginning-of-text token."""
        return self._ends

    def _find_ends(self) -> tuple[list[int], list[int]]:
        """What stands around a text, seen at one that is known: the first token that is no special one."""
        if not self._backend.num_special_tokens_to_add(is_pair=False):
            return [], []
        self._backend.encode_special_tokens = True
        ordinary = self._backend.get_vocab(with_added_tokens=False).keys() - self.special_tokens
        for text in chain("a", sorted(ordinary)):
            with suppress(Exception):  # the library raises no narrower one where it knows no token
                plain = self._backend.encode(text, add_special_tokens=False).ids
                whole = self._backend.encode(text, add_special_tokens=True).ids
                for before in range(len(whole) - len(plain) + 1) if plain else ():
                    if whole[before : before + len(plain)] == plain:
                        return whole[:before], whole[before + len(plain) :]
        raise ValueError("definition puts tokens around a text that is not among them")

    @property
    def end_of_text(self) -> int | None:
        """The id of the token that separates documents, if there is one."""
        return None if self._end_of_text is None else self.special_tokens[self._end_of_text]

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids at which writing ends."""
        return super().end_tokens | self._end_tokens

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text; the text of a special token is text like any other."""
        return self.encode(text)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, as `Tokenizer.encode` describes them."""
        self._backend.encode_special_tokens = not special
        return self._backend.encode(well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of several texts, on all cores."""
        self._backend.encode_special_tokens = True
        batch = [well_formed(text) for text in texts]
        return [row.ids for row in self._backend.encode_batch(batch, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, as the definition's decoder joins them.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        self._spell(ids)
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def decode_settled(self, ids: Sequence[int]) -> str:
        """As `Tokenizer.decode_settled`: of tokens that are bytes, only where another token follows.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        if not self._byte_tokens:
            return super().decode_settled(ids)
        settled = len(ids)
        while settled and ids[settled - 1] in self._byte_tokens:
            settled -= 1
        return self.decode(ids[:settled])

    def with_special_tokens(self, names: Iterable[str]) -> "HuggingFaceTokenizer":
        """The same tokenizer with further special tokens, whose ids follow the last one.

        Raises:
            ValueError: a name is empty.
        """
        new = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        if "" in new:
            raise ValueError("special_tokens must not be empty")
        if not new:
            return self
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in new])
        return HuggingFaceTokenizer(
            backend.to_str(), self._end_of_text, end_tokens=sorted(self._end_tokens)
        )

    def state(self) -> dict[str, Any]:
        """The definition, and which tokens end a text."""
        state = {"definition": self._backend.to_str(), "end_of_text": self._end_of_text}
        further = sorted(self.end_tokens - super().end_tokens)
        return {**state, "end_tokens": further} if further else state


def _spelling(decoder: dict[str, Any] | None) -> Spell:
    """How a token of the vocabulary is spelt inside a text, by what decodes it."""
    parts = list(_parts(decoder or {}))
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        byte = dict(zip(CHARACTERS, BYTES, strict=True))
        return lambda token: (
            bytes(byte[c] for c in token) if byte.keys() >= {*token} else token.encode()
        )
    if "WordPiece" in kinds:
        (prefix,) = (part["prefix"] for part in parts if part["type"] == "WordPiece")
        return lambda token: (
            token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        ).encode()
    return _spell_piece


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    else:
        yield decoder


def _spell_piece(token: str) -> bytes:
    """A token of SentencePiece: `▁` is a space, `<0x0A>` a byte."""
    return _byte_of(token) or token.replace("▁", " ").encode()


def _byte_of(token: str) -> bytes | None:
    """The byte that a token such as `<0x0A>` stands for."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else None
