"""Changes to the text before it is tokenized: small steps that compose, none by default.

A step is a function from text to text. What it depends on are its attributes, which are part of
the fingerprint of token files. Words keep their order, spaces and punctuation unless a step says
otherwise; steps apply in the order in which they are given.
"""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from importlib import import_module, metadata
from types import ModuleType
from typing import ClassVar

import regex

from llm.data import data_fingerprint
from llm.data.corpora.base import DocumentPiece, join_pieces
from llm.data.errors import DataError

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change

WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*")
WORDS_REMEMBERED = 1 << 18  # text repeats its words, and the libraries are slow


class Preprocessing(ABC):
    """One step, from text to text."""

    library: ClassVar[str] = ""  # whose version decides what the step does

    @abstractmethod
    def __call__(self, text: str) -> str:
        """Change a text."""

    def fingerprint(self) -> str:
        """The step's name, settings, version and library."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        library = metadata.version(self.library) if self.library else ""
        version = data_fingerprint.version_of(type(self))
        return f"{type(self).__qualname__} {settings} {library} {version}"


def preprocessed(
    pieces: Iterable[DocumentPiece], steps: Sequence[Preprocessing]
) -> Iterator[DocumentPiece]:
    """Yield documents as the steps leave them; those of which nothing is left are left out.

    A step may look at the whole of a document, so each is joined first; without steps none is.
    """
    if not steps:
        yield from pieces
        return
    for document in join_pieces(pieces):
        for step in steps:
            document = step(document)
        if document:
            yield DocumentPiece(document, ends=True)


class Lowercase(Preprocessing):
    """Write everything in lower case."""

    def __call__(self, text: str) -> str:
        """Lower the case."""
        return text.lower()


class NormalizeUnicode(Preprocessing):
    """Write what looks alike with the same code points (Unicode Standard Annex 15).

    Args:
        form: NFC (composed), NFD (decomposed), NFKC or NFKD (also without ligatures, widths and
            the like).

    Raises:
        ValueError: There is no such form.
    """

    def __init__(self, form: str = "NFC") -> None:
        if form not in ("NFC", "NFD", "NFKC", "NFKD"):
            raise ValueError(f"form={form}: choose NFC, NFD, NFKC or NFKD")
        self.form = form

    def __call__(self, text: str) -> str:
        """Normalize."""
        return unicodedata.normalize(self.form, text)  # pyright: ignore[reportArgumentType]


class RemoveSpecialCharacters(Preprocessing):
    """Remove what is neither letter, digit nor white space, nor asked to be kept.

    Args:
        keep: The characters to keep besides.
        replacement: What to write in place of each run of removed characters.
    """

    def __init__(self, keep: str = ".,;:!?'\"()-", replacement: str = "") -> None:
        self.keep, self.replacement = keep, replacement

    @cached_property
    def _special(self) -> regex.Pattern:
        return regex.compile(rf"[^\p{{L}}\p{{M}}\p{{N}}\s{regex.escape(self.keep)}]+")

    def __call__(self, text: str) -> str:
        """Remove them."""
        return self._special.sub(lambda _: self.replacement, text)


class RemoveStopWords(Preprocessing):
    """Remove the most frequent words of a language (library stop-words), in any case.

    Args:
        language: A code such as `en` or `de`.

    Raises:
        ValueError: The library has no list for it.
    """

    library = "stop-words"

    def __init__(self, language: str = "en") -> None:
        self.language = language
        stop_words = imported("stop_words", self.library)
        try:
            self._stop_words = frozenset(stop_words.get_stop_words(language))
        except stop_words.StopWordError:
            known = ", ".join(sorted(stop_words.LANGUAGE_MAPPING))
            raise ValueError(f"language={language}: choose one of {known}") from None

    def __call__(self, text: str) -> str:
        """Remove each with the space that follows it."""
        return regex.sub(rf"({WORD.pattern})[ \t]*", self._kept, text)

    def _kept(self, match: regex.Match) -> str:
        return "" if match[1].lower().replace("’", "'") in self._stop_words else match[0]


class Stem(Preprocessing):
    """Cut words down to their stems (library snowballstemmer; M. F. Porter's Snowball).

    The algorithms know lower case: let Lowercase go first.

    Args:
        language: A name such as `english` or `german`.

    Raises:
        ValueError: The library has no algorithm for it.
    """

    library = "snowballstemmer"

    def __init__(self, language: str = "english") -> None:
        self.language = language
        snowball = imported("snowballstemmer", self.library)
        if language not in snowball.algorithms():
            raise ValueError(
                f"language={language}: choose one of {', '.join(snowball.algorithms())}"
            )
        self._stem = lru_cache(WORDS_REMEMBERED)(snowball.stemmer(language).stemWord)

    def __call__(self, text: str) -> str:
        """Stem every word."""
        return WORD.sub(lambda match: self._stem(match[0]), text)


class Lemmatize(Preprocessing):
    """Write words as a dictionary lists them (library simplemma).

    Args:
        language: A code such as `en` or `de`.

    Raises:
        ValueError: The library has no dictionary for it.
    """

    library = "simplemma"

    def __init__(self, language: str = "en") -> None:
        self.language = language
        simplemma = imported("simplemma", self.library)

        def lemma(word: str) -> str:
            return simplemma.lemmatize(word, lang=language)

        self._lemma = lru_cache(WORDS_REMEMBERED)(lemma)
        try:
            lemma("word")
        except ValueError as error:
            raise ValueError(f"language={language}: {error}") from None

    def __call__(self, text: str) -> str:
        """Lemmatize every word."""
        return WORD.sub(lambda match: self._lemma(match[0]), text)


def steps_of(
    steps: dict[str, Preprocessing] | Sequence[Preprocessing],
) -> tuple[Preprocessing, ...]:
    """The steps in order, from a list or from a dictionary by name, as configurations have it."""
    return tuple(steps.values() if isinstance(steps, dict) else steps)


def imported(module: str, library: str) -> ModuleType:
    """Import an optional library.

    Raises:
        DataError: It is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError:
        raise DataError(
            f"this preprocessing needs the library {library}: pip install 'llm-hydra[preprocessing]'"
        ) from None
