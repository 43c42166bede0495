"""BERT's tokenizer: words cut into the longest pieces that a fixed vocabulary has.

Text is cleaned and, in the uncased models, lower-cased without accents; words are split at white space,
at punctuation and around each Chinese character; of a word the longest beginning that the vocabulary
has is taken, again and again. A piece that goes on with a word is written with `##`: playing becomes
`play ##ing`.

Sources: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"; Wu et al. 2016,
"Google's Neural Machine Translation System", section 4.1, for the pieces.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import punctuation
from typing import Any

from llm.files import read_object, read_utf8
from llm.tokenizers.base import Tokenizer, well_formed

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
GOES_ON = "##"
LONGEST_WORD = 100  # characters; longer ones are unknown

# Where Unicode keeps Chinese characters. Each is a word of its own, for nothing else separates them.
CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class WordPieceTokenizer(Tokenizer):
    """The id of a piece is its place in `pieces`. A word that cannot be spelled is one `[UNK]`.

    This is lossy: case and accents may be gone, and so is the white space.

    Args:
        pieces: The vocabulary in the order of its ids, special tokens among it.
        special_tokens: Names of the special tokens; those that are not in `pieces` follow it.
        lowercase: Whether case and accents are dropped, as the uncased models do.

    Raises:
        ValueError: A piece is there twice, or one of `[UNK]`, `[CLS]` and `[SEP]` is missing.
    """

    kind = "wordpiece"
    lossless = False

    def __init__(
        self,
        pieces: Sequence[str],
        special_tokens: Sequence[str] = (PAD, UNKNOWN, BEGIN, END, MASK),
        *,
        lowercase: bool = True,
    ) -> None:
        self.pieces = list(pieces)
        self.lowercase = lowercase
        self._ids = {piece: token for token, piece in enumerate(self.pieces)}
        if len(self._ids) < len(self.pieces):
            raise ValueError("pieces must differ")
        missing = [name for name in (UNKNOWN, BEGIN, END) if name not in self._ids]
        if missing:
            raise ValueError(f"pieces lack {', '.join(missing)}")
        new = [name for name in special_tokens if name not in self._ids]
        super().__init__([piece.encode() for piece in self.pieces], new)
        known = {name: self._ids[name] for name in special_tokens if name in self._ids}
        self.special_tokens = known | self.special_tokens

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of the pieces of a text, without those that stand around it."""
        return [
            token
            for word in split_wordpiece_words(well_formed(text), lowercase=self.lowercase)
            for token in self.spell(word)
        ]

    def spell(self, word: str) -> list[int]:
        """The ids of the longest pieces that make a word, or that of `[UNK]` if none do."""
        unknown = [self._ids[UNKNOWN]]
        if len(word) > LONGEST_WORD:
            return unknown
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = GOES_ON if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None:
                return unknown
            ids.append(self._ids[prefix + word[start:end]])
            start = end
        return ids

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """`[CLS]` before a text and `[SEP]` after it."""
        return [self._ids[BEGIN]], [self._ids[END]]

    def decode(self, ids: Sequence[int]) -> str:
        """The words with a space between them.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        text = " ".join(self.token_bytes(token).decode() for token in ids)
        return text.replace(f" {GOES_ON}", "")

    def state(self) -> dict[str, Any]:
        """The pieces, the special tokens' names, and whether case is dropped."""
        return {
            "pieces": self.pieces,
            "special_tokens": list(self.special_tokens),
            "lowercase": self.lowercase,
        }


def split_wordpiece_words(text: str, *, lowercase: bool) -> Iterator[str]:
    """The words of a text: what white space separates, punctuation marks and Chinese characters alone."""
    text = "".join(map(_clean, text))
    if lowercase:
        # Decomposed, an accent is a mark of its own. Letter by letter, for the form of a Greek sigma
        # at a word's end is not in the vocabularies.
        decomposed = unicodedata.normalize("NFD", text)
        text = "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")
    return iter("".join(f" {c} " if _stands_alone(c) else c for c in text).split())


def _clean(character: str) -> str:
    """A space for white space of any kind, nothing for what is no text, and the character itself."""
    if character in "\t\n\r":
        return " "
    # Control and format characters, and those of private use; what is not assigned yet stays.
    is_text = unicodedata.category(character) not in ("Cc", "Cf", "Co") and character != "\ufffd"
    return (" " if character.isspace() else character) if is_text else ""


def _stands_alone(character: str) -> bool:
    """Whether a character is Chinese, or punctuation: Unicode's, and ASCII's signs such as $ and +."""
    return (
        character in punctuation
        or unicodedata.category(character)[0] == "P"
        or any(first <= ord(character) <= last for first, last in CHINESE)
    )


def read_wordpiece(folder: Path) -> WordPieceTokenizer:
    """The tokenizer of a folder that Hugging Face's library wrote: of tokenizer.json, or of vocab.txt.

    Raises:
        FileNotFoundError: The folder has neither.
        ValueError: A file is damaged, or holds a tokenizer of another kind.
    """
    if (file := folder / "tokenizer.json").is_file():
        try:
            return _parse(read_object(file))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no WordPiece tokenizer known here: {error}") from error
    if not (file := folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt")
    config = folder / "tokenizer_config.json"
    settings = read_object(config) if config.is_file() else {}
    pieces = read_utf8(file).removesuffix("\n").split("\n")
    return WordPieceTokenizer(pieces, lowercase=settings.get("do_lower_case", True))


def _parse(described: dict[str, Any]) -> WordPieceTokenizer:
    """The tokenizer that a tokenizer.json describes."""
    model, normalizer = described["model"], described["normalizer"]
    for key, value, expected in (
        ("model.type", model["type"], "WordPiece"),
        ("normalizer.type", normalizer["type"], "BertNormalizer"),
        ("normalizer.clean_text", normalizer["clean_text"], True),
        ("normalizer.handle_chinese_chars", normalizer["handle_chinese_chars"], True),
        ("normalizer.strip_accents", normalizer["strip_accents"], (None, normalizer["lowercase"])),
    ):
        if value not in (expected if isinstance(expected, tuple) else (expected,)):
            raise ValueError(f"{key} is {value}")
    ids: dict[str, int] = model["vocab"] | {
        token["content"]: token["id"] for token in described["added_tokens"]
    }
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("its ids have gaps")
    special = [token["content"] for token in described["added_tokens"] if token["special"]]
    return WordPieceTokenizer(
        sorted(ids, key=ids.__getitem__), special, lowercase=normalizer["lowercase"]
    )
