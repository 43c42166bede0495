"""A tokenizer with one token for each character of the training text."""

from collections import Counter
from collections.abc import Iterable, Sequence

from llm.tokenizers.base import END_OF_TEXT, Tokenizer, replace_surrogates

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt


class CharTokenizer(Tokenizer):
    """A tokenizer whose id of a character is its index in `characters`; special tokens follow.

    Args:
        characters: the known characters, each once.
        special_tokens: the names of the special tokens.

    Raises:
        ValueError: `characters` is empty, repeats a character or contains a lone surrogate.
    """

    kind = "char"

    def __init__(self, characters: str, special_tokens: Sequence[str] = (END_OF_TEXT,)) -> None:
        self.characters = characters
        self._ids = {character: token for token, character in enumerate(characters)}
        if (
            not characters
            or len(self._ids) < len(characters)
            or replace_surrogates(characters) != characters
        ):
            raise ValueError(
                "characters is empty, repeats a character or has a lone surrogate; give each character once"
            )
        super().__init__([character.encode() for character in characters], special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of the characters of a text.

        Raises:
            ValueError: the text has unknown characters.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            unknown = Counter(character for character in text if character not in self._ids)
            named = ", ".join(
                f"{c!r} (U+{ord(c):04X}, {n} times)" for c, n in unknown.most_common(8)
            )
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            raise ValueError(
                f"{self!r} does not know {named}{more}; train it on text that has them, remove them, "
                "or use a tokenizer that knows every character, such as byte or bpe"
            ) from None


def train_char(texts: Iterable[str]) -> CharTokenizer:
    """Return a tokenizer for all characters of the texts, ordered by code point.

    Raises:
        ValueError: the texts are empty.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(replace_surrogates(text))
    if not characters:
        raise ValueError("the tokenizer's training text is empty; give at least one document")
    return CharTokenizer("".join(sorted(characters)))
