"""A token for each character that the training text has, and one for the end of a text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from llm.tokenizers.base import END_OF_TEXT, Tokenizer, well_formed

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change


class CharTokenizer(Tokenizer):
    """The id of a character is its place in `characters`; the special tokens come last.

    Args:
        characters: The characters known, each once.
        special_tokens: The names of the special tokens.

    Raises:
        ValueError: `characters` is empty, repeats a character or holds a lone surrogate.
    """

    kind = "char"

    def __init__(self, characters: str, special_tokens: Sequence[str] = (END_OF_TEXT,)) -> None:
        self.characters = characters
        self._ids = {character: token for token, character in enumerate(characters)}
        if (
            not characters
            or len(self._ids) < len(characters)
            or well_formed(characters) != characters
        ):
            raise ValueError("characters must be one or more, differ, and be no lone surrogates")
        super().__init__([character.encode() for character in characters], special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of the characters of a text.

        Raises:
            ValueError: The text has characters that the tokenizer does not know; the message names them.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            unknown = self.unknown(text)
            named = ", ".join(
                f"{c!r} (U+{ord(c):04X}, {n} times)" for c, n in unknown.most_common(8)
            )
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise ValueError(
                f"{self!r} does not know {named}{more}: train it on text that has them, take them "
                "out, or choose a tokenizer that knows every character, such as byte or bpe"
            ) from None

    def unknown(self, text: str) -> Counter[str]:
        """How often each character that the tokenizer does not know occurs in a text."""
        return Counter(character for character in well_formed(text) if character not in self._ids)

    def state(self) -> dict[str, Any]:
        """The characters and the names of the special tokens."""
        return {"characters": self.characters, "special_tokens": list(self.special_tokens)}


def train_char(texts: Iterable[str]) -> CharTokenizer:
    """The tokenizer of all characters in the texts, in the order of their code points.

    Raises:
        ValueError: There is no text.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(well_formed(text))
    if not characters:
        raise ValueError("the tokenizer's training text is empty: give it at least one document")
    return CharTokenizer("".join(sorted(characters)))
