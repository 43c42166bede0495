"""Your own text: files, folders, patterns and JSON lines."""

import glob
import gzip
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from io import BufferedReader
from pathlib import Path

from llm.data.errors import DataError
from llm.data.fingerprint import digest
from llm.data.preprocessing import Preprocessing
from llm.data.source import Source
from llm.data.text import TextDataModule
from llm.tokenizers.tokenizer import Tokenizer

SUFFIXES = (".txt", ".text", ".md", ".rst", ".jsonl")
SMALL = 1 << 24  # bytes: a larger file is known by its size and time instead of its content
ESCAPED = re.compile("[\udc80-\udcff]")  # how Python carries a byte that is not UTF-8


class Files(Source):
    """Each file is a document, and each row of a `.jsonl` file is one; any may be gzipped (`.gz`).

    Text is UTF-8, with any kind of line ends. Bytes that are not UTF-8 are replaced by U+FFFD and
    counted aloud; a byte-order mark is dropped; files without text are named and left out.

    Args:
        path: A file of any name; a folder, of which the files with one of the suffixes are read,
            sub-folders included, hidden ones and run directories (what a model wrote) not; a pattern
            such as `notes/**/*.md`; or several of these.
        text_field: The field of a JSON row that holds its text.
        suffixes: Which files of a folder to read, gzipped or not.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        text_field: str = "text",
        suffixes: Sequence[str] = SUFFIXES,
    ) -> None:
        self.paths = [path] if isinstance(path, str | Path) else list(path)
        self.text_field, self.suffixes = text_field, tuple(suffixes)
        self.name = ", ".join(map(str, self.paths))
        self._invalid: dict[Path, int] = {}

    @property
    def invalid_bytes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many bytes were replaced in the files read so far."""
        return sum(self._invalid.values())

    @cached_property
    def files(self) -> list[Path]:
        """The files that are meant, in order, each once.

        Raises:
            DataError: A path leads nowhere, or to a folder without text files.
        """
        found = (file for path in self.paths for file in self._expand(Path(path).expanduser()))
        return list(dict.fromkeys(found))

    def _expand(self, path: Path) -> list[Path]:
        if path.is_file():
            return [path]
        if path.is_dir():
            runs = {file.parent for file in path.rglob("run.json")}
            found = sorted(
                file
                for file in path.rglob("*")
                if self._is_text(file, path) and runs.isdisjoint(file.parents)
            )
            what = f"no file that ends in {', '.join(self.suffixes)}: name others in data.suffixes"
        else:
            found = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - absolute patterns
            found = [file for file in found if file.is_file()]
            what = "no such file, folder or pattern: correct data.path"
        if not found:
            raise DataError(f"{path}: {what}")
        return found

    def _is_text(self, file: Path, folder: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        return (
            not hidden and file.name.removesuffix(".gz").endswith(self.suffixes) and file.is_file()
        )

    def documents(self) -> Iterator[str]:
        """Yield the documents.

        Raises:
            DataError: A file is damaged, a JSON row is malformed or lacks the field.
        """
        for file in self.files:
            empty = True
            for document in self._documents_in(file):
                if document.strip():
                    empty = False
                    yield document
            if empty:
                warnings.warn(f"{file} is empty and was left out", stacklevel=2)

    def _documents_in(self, file: Path) -> Iterator[str]:
        invalid = 0

        def count(number: int) -> None:
            nonlocal invalid
            invalid += number

        with opened(file) as stream:
            try:
                if file.name.removesuffix(".gz").endswith(".jsonl"):
                    yield from rows(file, stream, self.text_field, count)
                else:
                    yield decoded(stream.read(), count)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{file}: damaged gzip file ({error})") from None
        if invalid and file not in self._invalid:
            warnings.warn(
                f"{file}: {invalid:,} bytes are not UTF-8 and were replaced by U+FFFD", stacklevel=2
            )
        self._invalid[file] = invalid

    def fingerprint(self) -> str:
        """The settings, and each file's name, size and content, or time where it is large."""
        files = [f"{file} {_state_of(file)}" for file in self.files]
        return digest(f"{self.text_field} {files}".encode())


class FilesDataModule(TextDataModule):
    """TextDataModule over Files, so that `data.path=…` is all that a user has to say.

    Args:
        path: As for Files.
        tokenizer: As for TextDataModule, like all that follows but for text_field and suffixes.
        context_length: T, tokens in a window.
        batch_size: B, windows in a batch.
        text_field: As for Files.
        suffixes: As for Files.
        stride: Tokens between the starts of windows.
        validation_fraction: Share of the text held out.
        seed: Decides the split and the order.
        preprocessing: Steps applied to each document.
        workers: Processes that gather batches.
        cache_dir: Where token files are kept.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        tokenizer: Tokenizer | Callable[[Iterable[str]], Tokenizer],
        context_length: int,
        batch_size: int,
        text_field: str = "text",
        suffixes: Sequence[str] = SUFFIXES,
        stride: int | None = None,
        validation_fraction: float = 0.1,
        seed: int = 0,
        preprocessing: dict[str, Preprocessing] | Sequence[Preprocessing] = (),
        workers: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(
            Files(path, text_field, suffixes),
            tokenizer,
            context_length,
            batch_size,
            stride,
            validation_fraction,
            seed,
            preprocessing,
            workers,
            cache_dir,
        )


def opened(file: Path) -> BufferedReader | gzip.GzipFile:
    """Open a file for reading bytes, unpacked where it is gzipped."""
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def decoded(content: bytes, count: Callable[[int], None] = lambda invalid: None) -> str:
    """Decode UTF-8, with U+FFFD for each byte that is not; line ends become newlines."""
    text = content.decode("utf-8-sig", errors="surrogateescape")
    text, invalid = ESCAPED.subn("\N{REPLACEMENT CHARACTER}", text)
    count(invalid)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def rows(
    file: Path, lines: Iterable[bytes], field: str, count: Callable[[int], None]
) -> Iterator[str]:
    """Yield one field of each JSON row.

    Raises:
        DataError: A row is no JSON object, or has no text in that field; named by file and line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(decoded(line, count))
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON object is needed, not {type(row).__name__}")
        if not isinstance(row.get(field), str):
            there = (
                ", ".join(name for name, value in row.items() if isinstance(value, str)) or "none"
            )
            raise DataError(
                f"{where}: no text in the field {field!r}: set data.text_field (text fields: {there})"
            )
        yield row[field]


def _state_of(file: Path) -> str:
    status = file.stat()
    if status.st_size <= SMALL:
        return digest(file.read_bytes())
    return f"{status.st_size} {status.st_mtime_ns}"
