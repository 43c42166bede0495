"""A token for each word of the training text, and one for all words that it does not have."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import regex

from llm.tokenizers.base import END_OF_TEXT, Tokenizer, well_formed

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

UNKNOWN = "<|unk|>"

# A long dash, a word with the hyphens inside it, or a single sign. White space only separates.
PATTERN = regex.compile(r"--|[\p{L}\p{M}\p{N}]++(?:-[\p{L}\p{M}\p{N}]++)*+|\S")

# Where the space between two tokens goes, in this order, when words are joined again.
_SPACING = [
    (regex.compile(r" (?=[,.:;?!%)\]}])"), ""),
    (regex.compile(r"(?<=[(\[{]) "), ""),
    (regex.compile(r"(?<=\w) (['’]) (?=(?:s|t|d|m|re|ve|ll)\b)"), r"\1"),
]
_QUOTED = regex.compile(r'" ([^"]*) "')
# An apostrophe whose space depends on the next word.
_LAST_APOSTROPHE = regex.compile(r"(?<=\w) ['’]$")


class WordTokenizer(Tokenizer):
    """The id of a word is its place in `words`; then come the special tokens.

    Words are split at white space and punctuation, and a punctuation mark is a word. This is lossy: an unknown
    word becomes `<|unk|>`, and decoding sets one space between words and none where English prose has none.

    Args:
        words: The words known, each once.
        special_tokens: The names of the special tokens, `<|unk|>` among them.

    Raises:
        ValueError: `words` is empty, repeats a word, or holds what splitting a text never gives;
            `<|unk|>` is missing.
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
            raise ValueError("words must be one or more and differ")
        for word in self.words:
            if split_words_and_marks(word) != [word]:
                raise ValueError(f"words holds {word!r}, which is not one word")
        if UNKNOWN not in special_tokens:
            raise ValueError(f"special_tokens lacks {UNKNOWN}, which unknown words become")
        super().__init__([word.encode() for word in self.words], special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of the words of a text, that of `<|unk|>` for each word it does not know."""
        unknown = self.special_tokens[UNKNOWN]
        return [self._ids.get(word, unknown) for word in split_words_and_marks(text)]

    def unknown(self, text: str) -> Counter[str]:
        """How often each word that the tokenizer does not know occurs in a text."""
        return Counter(word for word in split_words_and_marks(text) if word not in self._ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The words with spaces between them, as English prose sets them.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        return _QUOTED.sub(r'"\1"', self._spaced(ids))

    def decode_settled(self, ids: Sequence[int]) -> str:
        """As `Tokenizer.decode_settled`: up to a quote that may be closed yet, or before a last apostrophe.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        spaced = self._spaced(ids)
        closed = max((match.end() for match in _QUOTED.finditer(spaced)), default=0)
        text = _QUOTED.sub(r'"\1"', spaced)
        if spaced.rfind('"') >= closed:
            text = text[: text.rfind('"') + 1]
        return _LAST_APOSTROPHE.sub("", text)

    def _spaced(self, ids: Sequence[int]) -> str:
        """The words with spaces between them, those inside quotes not removed yet."""
        text = " ".join(self.token_bytes(token).decode() for token in ids)
        for gap, spacing in _SPACING:
            text = gap.sub(spacing, text)
        return text

    def state(self) -> dict[str, Any]:
        """The words and the names of the special tokens."""
        return {"words": self.words, "special_tokens": list(self.special_tokens)}


def split_words_and_marks(text: str) -> list[str]:
    """The words and punctuation marks of a text."""
    return PATTERN.findall(well_formed(text))


def train_word(texts: Iterable[str], vocab_size: int | None = None) -> WordTokenizer:
    """The tokenizer of the words in the texts, in alphabetical order.

    Args:
        texts: The training texts, read once.
        vocab_size: Keep the most frequent words, so that they and the two special tokens are no more
            than this; all words by default.

    Raises:
        ValueError: There is no word in the texts, or `vocab_size` leaves room for none.
    """
    if vocab_size is not None and vocab_size < 3:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: a word, {END_OF_TEXT} and {UNKNOWN} make 3 at least"
        )
    frequency = Counter(word for text in texts for word in split_words_and_marks(text))
    if not frequency:
        raise ValueError(
            "the tokenizer's training text has no words: give it at least one document"
        )
    words = sorted(frequency, key=lambda word: (-frequency[word], word))
    return WordTokenizer(sorted(words if vocab_size is None else words[: vocab_size - 2]))
