"""Rows of labelled and paired data: CSV, TSV, JSON and JSON lines, each known by its file and line."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm.data.decoding import read_text, suffix
from llm.data.download import Download
from llm.data.errors import DataError

SHOWN = 10  # of the malformed rows, in the message that names them
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".json", ".jsonl", ".ndjson")

csv.field_size_limit(1 << 30)  # a document is no error because it is longer than 131,072 characters

Paths = str | Path | Sequence[str | Path] | Download
Report = Callable[[str, str], None]


class Row(NamedTuple):
    """One record of a file.

    Attributes:
        where: The file and the line on which the record begins, such as `spam.csv, line 3`.
        values: What it holds by column or key: text from CSV and TSV, anything from JSON.
    """

    where: str
    values: dict[str, Any]


class Malformed:
    """What becomes of rows that cannot be used.

    Args:
        policy: `stop` refuses the data, naming the rows; `skip` leaves them out and counts them.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop") -> None:
        self.policy: Literal["stop", "skip"] = policy
        self.count = 0
        self._first: list[str] = []

    def add(self, where: str, problem: str) -> None:
        """Note one row, by its place and what is wrong with it."""
        self.count += 1
        if self.count <= SHOWN:
            self._first.append(f"{where}: {problem}")

    def close(self, what: str) -> int:
        """Say what was found, once everything has been read.

        Args:
            what: What the rows are called together, such as `messages`.

        Returns:
            How many rows are left out.

        Raises:
            DataError: There are any and the policy is to stop; it lists the first ten.
        """
        if not self.count:
            return 0
        if self.policy == "skip":
            warnings.warn(
                f"malformed {what}: {self.count:,} left out; the first: {self._first[0]}",
                stacklevel=2,
            )
            return self.count
        more = [f"… and {self.count - SHOWN:,} more"] if self.count > SHOWN else []
        raise DataError(
            f"malformed {what}: {self.count:,}; correct them, or leave them out with data.malformed=skip "
            "(with malformed=skip where llm evaluate reads a test_path)",
            *self._first,
            *more,
        )


def read_rows(
    path: Paths,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
    malformed: Malformed | None = None,
    encoding: str | None = None,
) -> Iterator[Row]:
    """Yield the rows of one file or of several, in order; blank lines are passed over.

    The name says the format: `.csv` and `.tsv` with a header, `.jsonl` with an object a line, `.json`
    with an array of objects or an object a line; each may be gzipped (`.gz`). Text is decoded by its
    byte-order mark, or else as `encoding`; any kind of line ends is read.

    Args:
        path: The file, or the files, or one to download.
        columns: Names of the columns of a CSV or TSV file that has no header.
        quoting: Whether quotes in CSV and TSV enclose a field; without it they are part of the text.
        malformed: Where rows that are no rows at all are noted; without it the first one is an error.
        encoding: The encoding of a file without a byte-order mark; None for UTF-8.

    Raises:
        DataError: A file is missing, damaged or of another kind, a CSV or TSV file has no proper
            header, or an array cannot be read to its end.
    """
    report = malformed.add if malformed is not None else _stop
    for file in files_of(path):
        kind = suffix(file)
        if kind not in SUFFIXES:
            raise DataError(f"{file}: its name ends in none of {', '.join(SUFFIXES)}")
        text = read_text(file, encoding)
        if kind in DELIMITERS:
            yield from _delimited(file, text, DELIMITERS[kind], columns, quoting, report)
        elif kind == ".json" and text.lstrip().startswith("["):
            yield from _array(file, text, report)
        else:
            yield from _lines(file, text, report)


def files_of(path: Paths) -> list[Path]:
    """The files on this machine; one that is published is fetched if need be."""
    if isinstance(path, Download):
        return [path.file()]
    return [Path(file).expanduser() for file in ([path] if isinstance(path, str | Path) else path)]


def title(path: Paths) -> str:
    """What a summary line calls the files."""
    if isinstance(path, Download):
        return path.name
    return ", ".join(map(str, [path] if isinstance(path, str | Path) else path))


def _stop(where: str, problem: str) -> None:
    raise DataError(f"{where}: {problem}")


def _delimited(
    file: Path,
    text: str,
    delimiter: str,
    columns: Sequence[str] | None,
    quoting: bool,
    report: Report,
) -> Iterator[Row]:
    quotes = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quotes, strict=True)
    records = _records(file, reader, report)
    names = list(columns) if columns is not None else _header(file, records)
    for where, fields in records:
        if len(fields) == len(names):
            yield Row(where, dict(zip(names, fields, strict=True)))
        else:
            report(where, f"{len(fields)} fields, not {len(names)} ({', '.join(names)})")


def _records(file: Path, reader: Any, report: Report) -> Iterator[tuple[str, list[str]]]:
    """The records with fields, each under the line on which it begins: a quoted field may hold several."""
    while True:
        where = f"{file}, line {reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report(where, f"quotes do not match ({error})")
        else:
            if fields:
                yield where, fields


def _header(file: Path, records: Iterable[tuple[str, list[str]]]) -> list[str]:
    where, names = next(iter(records), (str(file), []))
    if not names:
        raise DataError(f"{where}: is empty: a first line that names the columns is needed")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: a column is named twice in the header: {', '.join(names)}")
    return names


def _lines(file: Path, text: str, report: Report) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report(where, f"not JSON ({error})")
        else:
            yield from _objects(where, value, report)


def _array(file: Path, text: str, report: Report) -> Iterator[Row]:
    """The elements of an array, decoded one by one to know where each begins."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0  # the line of the character at `counted`
    place = _skip(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, place), place
        where = f"{file}, line {line}"
        try:
            value, end = decoder.raw_decode(text, place)
            place = _skip(text, end)
            if text[place : place + 1] not in (",", "]"):
                raise ValueError("no comma after this element")
        except (ValueError, RecursionError) as error:  # what follows cannot be told apart
            raise DataError(f"{where}: not JSON ({error}): correct the file") from None
        yield from _objects(where, value, report)
        more = text[place] == ","
        place = _skip(text, place + 1) if more else place
    if text[place:].strip() != "]":
        raise DataError(f"{file}: not JSON (more follows the array): correct the file")


def _skip(text: str, place: int) -> int:
    """The place of the next character that is no white space."""
    while place < len(text) and text[place] in " \t\n":
        place += 1
    return place


def _objects(where: str, value: Any, report: Report) -> Iterator[Row]:
    if isinstance(value, dict):
        yield Row(where, value)
    else:
        report(where, f"a JSON object is needed, not {type(value).__name__}")
