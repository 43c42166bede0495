"""Tokenizers of published models: any tokenizer.json that the Rust library `tokenizers` reads."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import tokenizers

from llm.tokenizers.base import Tokenizer, replace_surrogates
from llm.tokenizers.bpe import BYTES
from llm.tokenizers.gpt2 import CHARACTERS

# The largest published vocabularies have about 260,000 ids. Each id is a row of a model's embedding.
MOST_IDS = 2**22

Spell = Callable[[str], bytes]


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer defined by a tokenizer.json. `encode` leaves out the ids around a text, see `ends`.

    Ids that the definition skips decode to empty text.

    Args:
        definition: the content of a tokenizer.json.
        end_of_text: the name of the special token that ends a text, if there is one.
        end_tokens: further ids that end generation.

    Raises:
        ValueError: the definition cannot be read, or has no such special token.
    """

    kind = "huggingface"
    lossless = False  # most of them normalize the text

    def __init__(
        self, definition: str, end_of_text: str | None = None, *, end_tokens: Sequence[int] = ()
    ) -> None:
        try:
            self._backend = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises no narrower type
            raise ValueError(f"definition: is not a tokenizer.json ({error}); give one") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self.special_tokens = {t.content: i for i, t in sorted(added.items()) if t.special}
        if end_of_text is not None and end_of_text not in self.special_tokens:
            raise ValueError(
                f"end_of_text: {end_of_text} is not a special token; use one of {list(self.special_tokens)}"
            )
        self._end_of_text = end_of_text
        self._end_tokens = frozenset(end_tokens)
        ids = self._backend.get_vocab(with_added_tokens=True)
        if (largest := max(ids.values(), default=-1)) >= MOST_IDS:
            raise ValueError(f"definition: id {largest:,} is too large; use ids below {MOST_IDS:,}")
        steps = list(_decoders(json.loads(definition).get("decoder") or {}))
        spell = _spelling(steps)
        falls_back = any(step.get("type") == "ByteFallback" for step in steps)
        # One invalid byte makes all adjacent byte tokens invalid.
        self._byte_tokens = {i for name, i in ids.items() if falls_back and _byte_of(name)}
        self._bytes = dict.fromkeys(range(largest + 1), b"")
        self._bytes |= {token: spell(name) for name, token in ids.items()}
        self._bytes |= {token: added.content.encode() for token, added in added.items()}
        self._ends = self._find_ends()

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """The ids that the definition adds around every text, such as Llama's beginning-of-text token."""
        return self._ends

    def _find_ends(self) -> tuple[list[int], list[int]]:
        """Return the ids around a text, found by encoding the first ordinary token that works."""
        if not self._backend.num_special_tokens_to_add(is_pair=False):
            return [], []
        self._backend.encode_special_tokens = True
        ordinary = self._backend.get_vocab(with_added_tokens=False).keys() - self.special_tokens
        for text in chain("a", sorted(ordinary)):
            with suppress(Exception):  # no narrower type is raised for an unknown token
                plain = self._backend.encode(text, add_special_tokens=False).ids
                whole = self._backend.encode(text, add_special_tokens=True).ids
                for before in range(len(whole) - len(plain) + 1) if plain else ():
                    if whole[before : before + len(plain)] == plain:
                        return whole[:before], whole[before + len(plain) :]
        raise ValueError(
            "definition: what it adds around a text was not found; use a definition that keeps the text's tokens"
        )

    @property
    def end_of_text(self) -> int | None:
        """The id of the token that separates documents, if there is one."""
        return None if self._end_of_text is None else self.special_tokens[self._end_of_text]

    @property
    def end_tokens(self) -> frozenset[int]:
        """The ids that end generation."""
        return super().end_tokens | self._end_tokens

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text; names of special tokens are plain text."""
        return self.encode(text)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; see `Tokenizer.encode`."""
        self._backend.encode_special_tokens = not special
        return self._backend.encode(replace_surrogates(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of several texts, on all cores."""
        self._backend.encode_special_tokens = True
        batch = [replace_surrogates(text) for text in texts]
        return [row.ids for row in self._backend.encode_batch(batch, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, as the definition's decoder joins them."""
        self._spell(ids)  # raises for unknown ids, which the library skips
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def decode_settled(self, ids: Sequence[int]) -> str:
        """Return the text before the byte tokens at the end; see `Tokenizer.decode_settled`."""
        if not self._byte_tokens:
            return super().decode_settled(ids)
        settled = len(ids)
        while settled and ids[settled - 1] in self._byte_tokens:
            settled -= 1
        return self.decode(ids[:settled])

    def with_special_tokens(self, names: Iterable[str]) -> "HuggingFaceTokenizer":
        """Return a tokenizer with additional special tokens, as `Tokenizer.with_special_tokens`."""
        new = [name for name in dict.fromkeys(names) if name not in self.special_tokens]
        if "" in new:
            raise ValueError("special_tokens: a name is empty; give names of one character or more")
        if not new:
            return self
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in new])
        return HuggingFaceTokenizer(
            backend.to_str(), self._end_of_text, end_tokens=sorted(self._end_tokens)
        )

    def state(self) -> dict[str, Any]:
        """Return the definition and the tokens that end a text."""
        state = {"definition": self._backend.to_str(), "end_of_text": self._end_of_text}
        further = sorted(self.end_tokens - super().end_tokens)
        return {**state, "end_tokens": further} if further else state


def _spelling(steps: Sequence[dict[str, Any]]) -> Spell:
    """Return the function that maps a token of the vocabulary to its bytes in a text."""
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        byte = dict(zip(CHARACTERS, BYTES, strict=True))
        return lambda token: (
            bytes(byte[c] for c in token) if byte.keys() >= {*token} else token.encode()
        )
    if "WordPiece" in kinds:
        (prefix,) = (step["prefix"] for step in steps if step["type"] == "WordPiece")
        return lambda token: (
            token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        ).encode()
    # SentencePiece: `▁` is a space, `<0x0A>` a byte.
    return lambda token: _byte_of(token) or token.replace("▁", " ").encode()


def _decoders(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _decoders(step)
    else:
        yield decoder


def _byte_of(token: str) -> bytes | None:
    """Return the byte of a token such as `<0x0A>`, otherwise None."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else None
