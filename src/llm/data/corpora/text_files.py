"""A user's own text: files, folders and glob patterns of plain text, JSON and CSV rows."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm.data.corpora.base import DocumentPiece, Source, join_pieces
from llm.data.corpora.text import TextDataModule
from llm.data.data_fingerprint import digest
from llm.data.delimited import Layout
from llm.data.errors import DataError
from llm.data.json_rows import read_json_lines
from llm.data.paths import expand
from llm.data.record_reader import read_records, refuse_record
from llm.data.text_decoding import read_chunks, split_lines, suffix, warn_invalid
from llm.terminal import shell
from llm.tokenizers.base import END_OF_TEXT

SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".json", ".csv", ".tsv")
SMALL = 1 << 24  # bytes: the fingerprint of a larger file is its size and time, not its content


@dataclass(eq=False)
class TextFiles(Source):
    """A corpus of files: each text file, and each row of a JSON or CSV file, is a document.

    Files may be gzipped (`.gz`), with any line endings. A byte-order mark decides the encoding of a file. Warnings
    report bytes that cannot be decoded and become U+FFFD, empty files, and files of a folder that are not read.

    Args:
        path: a file of any name; a folder with subfolders, but without hidden files and run directories; a glob
            pattern such as `notes/**/*.md`; or several of these.
        text_field: the field of a JSON row, or the column of a CSV file, with the text.
        suffixes: suffixes of the files to read in a folder, in any case; they may be gzipped.
        encoding: the encoding of files without a byte-order mark; None for UTF-8.
        document_separator: a string between the documents of one file; None if a file is one document.
        delimiter: character between the columns of a CSV file; None detects it.
        quoting: whether quotes in a CSV file enclose a field.
    """

    path: str | Path | Sequence[str | Path]
    _: KW_ONLY
    text_field: str = "text"
    suffixes: Sequence[str] = SUFFIXES
    encoding: str | None = None
    document_separator: str | None = None
    delimiter: str | None = None
    quoting: bool = True

    def __post_init__(self) -> None:
        self.layout = Layout(None, self.delimiter, self.encoding, self.quoting)
        self.paths = [self.path] if isinstance(self.path, str | Path) else list(self.path)
        self.name = ", ".join(map(str, self.paths))
        self._invalid: dict[Path, int] = {}
        self._warned: set[str] = set()

    @property
    def invalid_bytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of bytes replaced in the files read so far."""
        return sum(self._invalid.values())

    @cached_property
    def files(self) -> list[Path]:
        """The files to read, in order, each once.

        Raises:
            DataError: a path does not exist, or is a folder without text files.
        """
        return list(dict.fromkeys(expand(self.paths, self.suffixes, warn=self._warn_once)))

    def documents(self) -> Iterator[str]:
        """Yield the documents.

        Raises:
            DataError: a file is damaged or is not text, a row is malformed or lacks the field.
        """
        return join_pieces(self.pieces())

    def pieces(self) -> Iterator[DocumentPiece]:
        """Yield the documents in pieces of about 1 MB."""
        for file in self.files:
            empty = True
            for piece in drop_blank(self._pieces_in(file)):
                empty = False
                yield piece
            if empty:
                self._warn_once(f"{file} is empty and was left out")

    def _pieces_in(self, file: Path) -> Iterator[DocumentPiece]:
        if suffix(file) in TABLES:  # read_records counts invalid bytes itself
            yield from self._fields(read_records(file, self.layout))
            return
        invalid: list[int] = []
        text = read_chunks(
            file, self.encoding, count=invalid.append, table_advice=self.table_advice(file)
        )
        if suffix(file) in JSON_LINES:
            rows = read_json_lines(file, split_lines(text), report=refuse_record)
            yield from self._fields(rows)
        elif self.document_separator:
            yield from split_documents(text, self.document_separator)
        else:
            yield from self._whole(file, text)
        if file not in self._invalid:
            warn_invalid(file, sum(invalid), encoding=self.encoding)
        self._invalid[file] = sum(invalid)

    def table_advice(self, file: Path) -> str:
        """Return the text to append to the advice in the error for a Parquet or Arrow file."""
        return ""

    def _fields(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[DocumentPiece]:
        """Yield the text of each row."""
        for where, values in rows:
            if not isinstance(text := values.get(self.text_field), str):
                there = [name for name, value in values.items() if isinstance(value, str)]
                raise DataError(
                    f"{where}: has no text in the field {self.text_field!r}; set data.text_field to one of its text "
                    f"fields ({', '.join(there) or 'it has none'})"
                )
            yield DocumentPiece(text, ends=True)

    def _whole(self, file: Path, text: Iterable[str]) -> Iterator[DocumentPiece]:
        """Yield a text as one document; warn if it contains the name of the end-of-text token."""
        number, end = 0, ""
        for chunk in text:
            number += (end + chunk).count(END_OF_TEXT)
            end = (end + chunk)[1 - len(END_OF_TEXT) :]  # too short to contain the name again
            yield DocumentPiece(chunk, ends=False)
        yield DocumentPiece("", ends=True)
        if number:
            self._warn_once(
                f"{file}: {END_OF_TEXT} occurs {number:,} times and is read as text; "
                f"set data.document_separator='{END_OF_TEXT}' to end a document there"
            )

    def _warn_once(self, line: str) -> None:
        """Warn, once per message: the files are read several times."""
        if line not in self._warned:
            self._warned.add(line)
            warnings.warn(line, stacklevel=2)

    def fingerprint(self) -> str:
        """Return a hash of the settings and the files: of their content, or of size and time if they are large."""
        files = [f"{file} {_state_of(file)}" for file in self.files]
        settings = f"{self.text_field} {self.encoding} {self.document_separator!r}"
        if self.layout != Layout(encoding=self.encoding):
            settings += f" {self.layout}"
        return digest(f"{settings} {files}".encode())


class TrainingFiles(TextFiles):
    """A corpus of files to train on: the error for a Parquet or Arrow file suggests `data=huggingface`."""

    def table_advice(self, file: Path) -> str:
        """Return the options that train on a column of the file."""
        path = shell.quoted_word(f"data.source.path={file}")
        return f"; to train on a column of it, use data=huggingface {path}"


class FilesDataModule(TextDataModule):
    """A TextDataModule of files, with the arguments of TextFiles and the other ones of TextDataModule."""

    supplied = ("source", "validation")

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        *,
        text_field: str = "text",
        suffixes: Sequence[str] = SUFFIXES,
        encoding: str | None = None,
        document_separator: str | None = None,
        delimiter: str | None = None,
        quoting: bool = True,
        **shared: Any,
    ) -> None:
        source = TrainingFiles(
            path,
            text_field=text_field,
            suffixes=suffixes,
            encoding=encoding,
            document_separator=document_separator,
            delimiter=delimiter,
            quoting=quoting,
        )
        super().__init__(source, **shared)


def split_documents(text: Iterable[str], separator: str) -> Iterator[DocumentPiece]:
    """Yield the documents of a text, which a separator divides."""
    rest = ""
    for chunk in text:
        *whole, rest = (rest + chunk).split(separator)
        yield from (DocumentPiece(document, ends=True) for document in whole)
        certain = max(0, len(rest) - len(separator) + 1)  # the rest may be the start of a separator
        yield DocumentPiece(rest[:certain], ends=False)
        rest = rest[certain:]
    yield DocumentPiece(rest, ends=True)


def drop_blank(pieces: Iterable[DocumentPiece]) -> Iterator[DocumentPiece]:
    """Yield the documents that are not only white space."""
    held = ""  # white space at the beginning of a document
    begun = False
    for text, ends in pieces:
        if begun:
            yield DocumentPiece(text, ends)
        elif (held + text).strip():
            yield DocumentPiece(held + text, ends)
            held, begun = "", True
        else:
            held += text
        if ends:
            held, begun = "", False


def _state_of(file: Path) -> str:
    status = file.stat()
    if status.st_size <= SMALL:
        return digest(file.read_bytes())
    return f"{status.st_size} {status.st_mtime_ns}"
