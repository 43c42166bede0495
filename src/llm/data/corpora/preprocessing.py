"""Changes to the text before it is tokenized; none by default."""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from importlib import metadata
from typing import Any, ClassVar

import regex

from llm.data import data_fingerprint
from llm.data.corpora.base import DocumentPiece, join_pieces
from llm.data.optional_library import import_optional

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt

WORD = regex.compile(r"[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*")
CACHED_WORDS = 1 << 18  # words repeat, and the libraries are slow


class Preprocessing(ABC):
    """A preprocessing step. Its public attributes are its settings, part of the fingerprint of token files."""

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


def preprocess(
    pieces: Iterable[DocumentPiece], steps: Sequence[Preprocessing]
) -> Iterator[DocumentPiece]:
    """Yield documents after all steps; skip documents that become empty."""
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
        form: NFC (composed), NFD (decomposed), or NFKC or NFKD, which also replace variants such as ligatures.

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
        self._special = regex.compile(rf"[^\p{{L}}\p{{M}}\p{{N}}\s{regex.escape(keep)}]+")

    def __call__(self, text: str) -> str:
        """Return the text without special characters."""
        return self._special.sub(lambda _: self.replacement, text)


class WordStep(Preprocessing):
    """A step that changes each word of a language, with a library.

    Args:
        language: the language, as the library names it.

    Raises:
        ValueError: the library does not know the language.
    """

    module: ClassVar[str]
    word: ClassVar[regex.Pattern] = WORD

    def __init__(self, language: str) -> None:
        self.language = language
        library = import_optional(
            self.module, library=self.library, extra="preprocessing", user="preprocessing"
        )
        known = sorted(self.languages(library))
        if language not in known:
            raise ValueError(f"language={language} is unknown; use one of {', '.join(known)}")
        self._change = lru_cache(CACHED_WORDS)(self.change_of_words(library))

    def __call__(self, text: str) -> str:
        """Return the text with each word changed."""
        return self.word.sub(lambda match: self._change(match[0]), text)

    @abstractmethod
    def languages(self, library: Any) -> Collection[str]:
        """Return the names of the languages that the library knows."""

    @abstractmethod
    def change_of_words(self, library: Any) -> Callable[[str], str]:
        """Return the function that changes a word."""


class RemoveStopWords(WordStep):
    """A step that removes the most frequent words of a language, in any case, and the spaces after them."""

    module, library = "stop_words", "stop-words"
    word = regex.compile(rf"{WORD.pattern}[ \t]*")

    def languages(self, library: Any) -> Collection[str]:
        """Return codes such as `en`, and names such as `english`."""
        return {*library.LANGUAGE_MAPPING, *library.AVAILABLE_LANGUAGES}

    def change_of_words(self, library: Any) -> Callable[[str], str]:
        """Return a function that returns nothing for a stop word."""
        stop_words = frozenset(library.get_stop_words(self.language))
        return lambda w: "" if w.rstrip().lower().replace("’", "'") in stop_words else w


class Stem(WordStep):
    """A step that replaces words by their stems (M. F. Porter's Snowball).

    The algorithms expect lower case, so put Lowercase before it.
    """

    module, library = "snowballstemmer", "snowballstemmer"

    def languages(self, library: Any) -> Collection[str]:
        """Return names such as `english`."""
        return library.algorithms()

    def change_of_words(self, library: Any) -> Callable[[str], str]:
        """Return the stemmer of the language."""
        return library.stemmer(self.language).stemWord


class Lemmatize(WordStep):
    """A step that replaces words by their dictionary forms."""

    module, library = "simplemma", "simplemma"

    def languages(self, library: Any) -> Collection[str]:
        """Return codes such as `en`."""
        return library.strategies.dictionaries.dictionary_factory.SUPPORTED_LANGUAGES

    def change_of_words(self, library: Any) -> Callable[[str], str]:
        """Return the lemmatizer of the language."""
        return partial(library.lemmatize, lang=self.language)


def steps_of(
    steps: dict[str, Preprocessing] | Sequence[Preprocessing],
) -> tuple[Preprocessing, ...]:
    """Return the steps of a list, or of a configuration's dictionary by name."""
    return tuple(steps.values() if isinstance(steps, dict) else steps)
