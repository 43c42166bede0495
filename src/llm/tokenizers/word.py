"""A tokenizer with one token for each word of the training text, and one for all other words."""

from collections import Counter
from collections.abc import Iterable, Sequence

import regex

from llm.tokenizers.base import END_OF_TEXT, Tokenizer, replace_surrogates

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

UNKNOWN = "<|unk|>"

# A double hyphen, a word with hyphens inside it, or a single punctuation mark.
PATTERN = regex.compile(r"--|[\p{L}\p{M}\p{N}]++(?:-[\p{L}\p{M}\p{N}]++)*+|\S")

# Spaces to remove after joining tokens with spaces, in this order.
_SPACING = [
    (regex.compile(r" (?=[,.:;?!%)\]}])"), ""),
    (regex.compile(r"(?<=[(\[{]) "), ""),
    (regex.compile(r"(?<=\w) (['’]) (?=(?:s|t|d|m|re|ve|ll)\b)"), r"\1"),
]
_QUOTED = regex.compile(r'" ([^"]*) "')
# An apostrophe whose space depends on the next word.
_LAST_APOSTROPHE = regex.compile(r"(?<=\w) ['’]$")


class WordTokenizer(Tokenizer):
    """A tokenizer whose id of a word is its index in `words`; special tokens follow.

    A punctuation mark is a word. Lossy: an unknown word becomes `<|unk|>`, and decoding sets the spaces of
    English prose.

    Args:
        words: the known words, each once.
        special_tokens: the names of the special tokens, including `<|unk|>`.

    Raises:
        ValueError: `words` is empty, repeats a word, or has an item that is not one word; or `<|unk|>` is
            missing.
    """

    kind = "word"
    lossless = False
    context = None

    def __init__(
        self, words: Sequence[str], special_tokens: Sequence[str] = (END_OF_TEXT, UNKNOWN)
    ) -> None:
        self.words = list(words)
        self._ids = {word: token for token, word in enumerate(self.words)}
        if not self.words or len(self._ids) < len(self.words):
            raise ValueError("words: is empty or repeats a word; give each word once")
        for word in self.words:
            if split_words_and_marks(word) != [word]:
                raise ValueError(f"words: {word!r} is not one word; split it")
        if UNKNOWN not in special_tokens:
            raise ValueError(f"special_tokens: {UNKNOWN} for unknown words is missing; add it")
        super().__init__([word.encode() for word in self.words], special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of the words of a text; an unknown word has the id of `<|unk|>`."""
        unknown = self.special_tokens[UNKNOWN]
        return [self._ids.get(word, unknown) for word in split_words_and_marks(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words, spaced as in English prose."""
        return _QUOTED.sub(r'"\1"', self._spaced(ids))

    def decode_settled(self, ids: Sequence[int]) -> str:
        """Return the text up to an open quote or a last apostrophe; see `Tokenizer.decode_settled`."""
        spaced = self._spaced(ids)
        closed = max((match.end() for match in _QUOTED.finditer(spaced)), default=0)
        text = _QUOTED.sub(r'"\1"', spaced)
        if spaced.rfind('"') >= closed:
            text = text[: text.rfind('"') + 1]
        return _LAST_APOSTROPHE.sub("", text)

    def _spaced(self, ids: Sequence[int]) -> str:
        """Return the spaced words, still with the spaces inside quotes."""
        text = " ".join(self.token_bytes(token).decode() for token in ids)
        for gap, spacing in _SPACING:
            text = gap.sub(spacing, text)
        return text


def split_words_and_marks(text: str) -> list[str]:
    """Return the words and punctuation marks of a text."""
    return PATTERN.findall(replace_surrogates(text))


def train_word(texts: Iterable[str], vocab_size: int | None = None) -> WordTokenizer:
    """Return a tokenizer for the words of the texts, in alphabetical order.

    Args:
        texts: the training texts, read once.
        vocab_size: maximum number of ids, including two special tokens; the most frequent words are kept. None
            keeps all.

    Raises:
        ValueError: the texts have no word, or `vocab_size` is less than 3.
    """
    if vocab_size is not None and vocab_size < 3:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for a word, {END_OF_TEXT} and {UNKNOWN}; use 3 or more"
        )
    frequency = Counter(word for text in texts for word in split_words_and_marks(text))
    if not frequency:
        raise ValueError("the tokenizer's training text has no words; give at least one document")
    words = sorted(frequency, key=lambda word: (-frequency[word], word))
    return WordTokenizer(sorted(words if vocab_size is None else words[: vocab_size - 2]))
