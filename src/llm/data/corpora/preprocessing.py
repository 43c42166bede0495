"""Changes to the text before it is tokenized: small steps that compose; none by default.

A step is a function from text to text. Its public attributes are its settings, which are part of the
fingerprint of token files. Steps are applied in the given order.
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

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*")
WORDS_REMEMBERED = 1 << 18  # entries of the cache: words repeat, and the libraries are slow


class Preprocessing(ABC):
    """A preprocessing step, from text to text."""

    library: ClassVar[str] = ""  # library whose version changes the result

    @abstractmethod
    def __call__(self, text: str) -> str:
        """Return the changed text."""

    def fingerprint(self) -> str:
        """Return the step's name, settings, version and library."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        library = metadata.version(self.library) if self.library else ""
        version = data_fingerprint.version_of(type(self))
        return f"{type(self).__qualname__} {settings} {library} {version}"


def preprocessed(
    pieces: Iterable[DocumentPiece], steps: Sequence[Preprocessing]
) -> Iterator[DocumentPiece]:
    """Yield documents after all steps; skip documents that become empty.

    Steps need whole documents, so pieces are joined. Without steps they are not.
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
    """A step that converts text to lower case."""

    def __call__(self, text: str) -> str:
        """Return the text in lower case."""
        return text.lower()


class NormalizeUnicode(Preprocessing):
    """A step that writes equivalent characters with the same code points (Unicode Standard Annex 15).

    Args:
        form: NFC (composed), NFD (decomposed), or NFKC or NFKD, which also replace ligatures, full-width
            characters and similar variants.

    Raises:
        ValueError: the form is unknown.
    """

    def __init__(self, form: str = "NFC") -> None:
        if form not in ("NFC", "NFD", "NFKC", "NFKD"):
            raise ValueError(f"form={form} is unknown; use NFC, NFD, NFKC or NFKD")
        self.form = form

    def __call__(self, text: str) -> str:
        """Return the normalized text."""
        return unicodedata.normalize(self.form, text)  # pyright: ignore[reportArgumentType]


class RemoveSpecialCharacters(Preprocessing):
    """A step that removes all characters but letters, digits, white space and those to keep.

    Args:
        keep: further characters to keep.
        replacement: text that replaces each run of removed characters.
    """

    def __init__(self, keep: str = ".,;:!?'\"()-", replacement: str = "") -> None:
        self.keep, self.replacement = keep, replacement

    @cached_property
    def _special(self) -> regex.Pattern:
        return regex.compile(rf"[^\p{{L}}\p{{M}}\p{{N}}\s{regex.escape(self.keep)}]+")

    def __call__(self, text: str) -> str:
        """Return the text without special characters."""
        return self._special.sub(lambda _: self.replacement, text)


class RemoveStopWords(Preprocessing):
    """A step that removes the most frequent words of a language, in any case (library stop-words).

    Args:
        language: a code such as `en` or `de`.

    Raises:
        ValueError: the library has no list for the language.
    """

    library = "stop-words"

    def __init__(self, language: str = "en") -> None:
        self.language = language
        stop_words = imported("stop_words", self.library)
        try:
            self._stop_words = frozenset(stop_words.get_stop_words(language))
        except stop_words.StopWordError:
            known = ", ".join(sorted(stop_words.LANGUAGE_MAPPING))
            raise ValueError(f"language={language} is unknown; use one of {known}") from None

    def __call__(self, text: str) -> str:
        """Return the text without stop words and the spaces after them."""
        return regex.sub(rf"({WORD.pattern})[ \t]*", self._kept, text)

    def _kept(self, match: regex.Match) -> str:
        return "" if match[1].lower().replace("’", "'") in self._stop_words else match[0]


class Stem(Preprocessing):
    """A step that replaces words by their stems (library snowballstemmer; M. F. Porter's Snowball).

    The algorithms expect lower case, so put Lowercase before it.

    Args:
        language: a name such as `english` or `german`.

    Raises:
        ValueError: the library has no algorithm for the language.
    """

    library = "snowballstemmer"

    def __init__(self, language: str = "english") -> None:
        self.language = language
        snowball = imported("snowballstemmer", self.library)
        if language not in snowball.algorithms():
            raise ValueError(
                f"language={language} is unknown; use one of {', '.join(snowball.algorithms())}"
            )
        self._stem = lru_cache(WORDS_REMEMBERED)(snowball.stemmer(language).stemWord)

    def __call__(self, text: str) -> str:
        """Return the text with stems for words."""
        return WORD.sub(lambda match: self._stem(match[0]), text)


class Lemmatize(Preprocessing):
    """A step that replaces words by their dictionary forms (library simplemma).

    Args:
        language: a code such as `en` or `de`.

    Raises:
        ValueError: the library has no dictionary for the language.
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
            raise ValueError(
                f"language={language} is unknown ({error}); use a language that simplemma has"
            ) from None

    def __call__(self, text: str) -> str:
        """Return the text with dictionary forms for words."""
        return WORD.sub(lambda match: self._lemma(match[0]), text)


def steps_of(
    steps: dict[str, Preprocessing] | Sequence[Preprocessing],
) -> tuple[Preprocessing, ...]:
    """Return the steps in order, from a list or from a configuration's dictionary by name."""
    return tuple(steps.values() if isinstance(steps, dict) else steps)


def imported(module: str, library: str) -> ModuleType:
    """Import an optional library.

    Raises:
        DataError: the library is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise DataError(
            f"preprocessing: needs the library {library}; run pip install 'llm-hydra[preprocessing]'"
        ) from None
