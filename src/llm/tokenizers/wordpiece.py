"""BERT's tokenizer, WordPiece: words are cut into the longest pieces of a fixed vocabulary.

1. Clean the text; for uncased models, lower its case and remove accents.
2. Split it into words at white space, at punctuation and around each Chinese character.
3. From the start of each word take the longest piece of the vocabulary, then continue with the rest.
   A piece that does not begin a word starts with `##`: playing becomes `play ##ing`.

Unlike in BPE, the order in which the pieces were learned does not matter.

Sources: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers"; Wu et al. 2016,
"Google's Neural Machine Translation System", section 4.1, for the pieces.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import punctuation
from typing import Any

from llm.files import read_object, read_utf8
from llm.tokenizers.base import Tokenizer, replace_surrogates

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

PAD, UNKNOWN, BEGIN, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
CONTINUATION = "##"  # without it, `ing` inside a word and the word `ing` would be the same token
LONGEST_WORD = 100  # characters; a longer word is unknown: the search takes quadratic time

# Unicode's ranges of Chinese characters. Each is a word of its own: Chinese has no spaces between words.
CHINESE = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class WordPieceTokenizer(Tokenizer):
    """A tokenizer whose id of a piece is its index in `pieces`.

    Lossy: case, accents and white space are not restored, and a word that the pieces cannot spell is `[UNK]`.

    Args:
        pieces: the vocabulary in the order of its ids, including special tokens.
        special_tokens: names of the special tokens; those not in `pieces` get the ids after it.
        lowercase: whether case and accents are removed, as in the uncased models.

    Raises:
        ValueError: a piece occurs twice, or one of `[UNK]`, `[CLS]` and `[SEP]` is missing.
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
            raise ValueError("pieces: one occurs twice; give each once")
        missing = [name for name in (UNKNOWN, BEGIN, END) if name not in self._ids]
        if missing:
            raise ValueError(f"pieces: {', '.join(missing)} is missing; add it")
        # BERT's special tokens are among the pieces, so their ids are not always the last ones.
        new = [name for name in special_tokens if name not in self._ids]
        super().__init__([piece.encode() for piece in self.pieces], new)
        known = {name: self._ids[name] for name in special_tokens if name in self._ids}
        self.special_tokens = known | self.special_tokens

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text, without `[CLS]` and `[SEP]`."""
        return [
            token
            for word in split_wordpiece_words(replace_surrogates(text), lowercase=self.lowercase)
            for token in self.spell(word)
        ]

    def spell(self, word: str) -> list[int]:
        """Return the ids of a word's pieces, or that of `[UNK]` if they cannot spell it."""
        unknown = [self._ids[UNKNOWN]]
        if len(word) > LONGEST_WORD:
            return unknown
        ids: list[int] = []
        start = 0
        while start < len(word):
            # Greedy, longest piece first, as in BERT. A word that other pieces could spell may be `[UNK]`; this is
            # rare, because published vocabularies have the single letters.
            prefix = CONTINUATION if start else ""
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
        """Return the words, separated by spaces."""
        text = " ".join(self.token_bytes(token).decode() for token in ids)
        return text.replace(f" {CONTINUATION}", "")


def split_wordpiece_words(text: str, *, lowercase: bool) -> Iterator[str]:
    """Return the words of a text; each punctuation mark and Chinese character is one."""
    text = "".join(map(_clean, text))
    if lowercase:
        # NFD makes an accent a separate mark (category Mn), which can be removed. Lower the case letter by letter:
        # `str.lower` of a word writes a final Greek sigma in a form that the vocabularies lack.
        decomposed = unicodedata.normalize("NFD", text)
        text = "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")
    return iter("".join(f" {c} " if _is_word(c) else c for c in text).split())


def _clean(character: str) -> str:
    """Return a space for white space, nothing for a control character, otherwise the character."""
    if character in "\t\n\r":
        return " "
    # Cc: control, Cf: format, Co: private use. Unassigned characters (Cn) are kept.
    is_text = unicodedata.category(character) not in ("Cc", "Cf", "Co") and character != "\ufffd"
    return (" " if character.isspace() else character) if is_text else ""


def _is_word(character: str) -> bool:
    """Return whether a character is a word: Chinese, Unicode's punctuation, or an ASCII sign such as $ or +."""
    return (
        character in punctuation
        or unicodedata.category(character)[0] == "P"
        or any(first <= ord(character) <= last for first, last in CHINESE)
    )


def read_wordpiece(folder: Path) -> WordPieceTokenizer:
    """Return the tokenizer in a folder of Hugging Face's library, from its tokenizer.json or vocab.txt.

    Raises:
        FileNotFoundError: the folder has neither file.
        ValueError: a file is damaged, or its tokenizer is not WordPiece.
    """
    if (file := folder / "tokenizer.json").is_file():
        try:
            return _parse(read_object(file))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: is not a supported WordPiece tokenizer ({error}); use a BERT model's file"
            ) from error
    if not (file := folder / "vocab.txt").is_file():
        raise FileNotFoundError(f"{folder}: has neither tokenizer.json nor vocab.txt; add one")
    config = folder / "tokenizer_config.json"
    settings = read_object(config) if config.is_file() else {}
    pieces = read_utf8(file).removesuffix("\n").split("\n")
    return WordPieceTokenizer(pieces, lowercase=settings.get("do_lower_case", True))


def _parse(described: dict[str, Any]) -> WordPieceTokenizer:
    """Return the tokenizer that a tokenizer.json describes."""
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
