"""CSV and TSV files with any delimiter, with or without Excel's `sep=` line."""

import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llm.data.errors import DataError
from llm.data.malformed import Report
from llm.data.text_decoding import suffix

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # default, by suffix
CANDIDATES = ",;\t|"
SAMPLE = 20  # lines used to detect the delimiter
EXCEL = re.compile(r'"?sep=(.)"?\n', re.IGNORECASE)  # Excel's first line, which sets the delimiter

# Python's limit of 131,072 characters is too small for a long document.
csv.field_size_limit(1 << 30)

Columns = Sequence[str] | Mapping[str, str] | None


@dataclass(frozen=True)
class Layout:
    """The format of rows in files.

    Args:
        columns: column names of a CSV or TSV file without a header; or a mapping from our names of fields to
            those in the files.
        delimiter: character between the columns of CSV and TSV, or a backslash and t for a tab; None detects it
            for each file.
        encoding: the encoding of files without a byte-order mark, such as cp1252; None for UTF-8.
        quoting: whether quotes in CSV and TSV enclose a field; otherwise they are part of the text.

    Raises:
        ValueError: the delimiter is not one character, or two fields are mapped to one name.
    """

    columns: Columns = None
    delimiter: str | None = None
    encoding: str | None = None
    quoting: bool = True

    def __post_init__(self) -> None:
        theirs = [*self.columns.values()] if isinstance(self.columns, Mapping) else []
        if len(set(theirs)) < len(theirs):
            raise ValueError(f"columns: {theirs} has a name twice; map each field to its own")
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", self.delimiter.replace("\\t", "\t"))
            if len(self.delimiter) != 1 or self.delimiter in '"\n\r':
                raise ValueError(
                    f"delimiter={self.delimiter!r} cannot separate columns; use one character such as ';' or '\\t'"
                )

    @property
    def header(self) -> Sequence[str] | None:
        """Column names of a file without a header."""
        return None if isinstance(self.columns, Mapping) else self.columns

    def rename(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return a row, and the objects in its lists, with our names as keys."""
        if not isinstance(self.columns, Mapping):
            return values
        ours = {theirs: name for name, theirs in self.columns.items()}

        def renamed(item: Any) -> Any:
            is_object = isinstance(item, dict)
            return {ours.get(key, key): item[key] for key in item} if is_object else item

        return {
            name: [*map(renamed, value)] if isinstance(value, list) else value
            for name, value in renamed(values).items()
        }


def read_delimited(
    file: Path, text: str, layout: Layout, *, report: Report
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file and line, and the values, of each record.

    Columns without a name are not read; a warning counts their rows with a value.

    Args:
        file: the file, for messages.
        text: the content of the file.
        layout: the format of the rows.
        report: called with the file and line of a malformed record, and what is wrong.

    Raises:
        DataError: the header is missing or repeats a name, or a quote is never closed.
    """
    delimiter = layout.delimiter
    if excel := EXCEL.match(text):
        text = text[excel.end() :]
        delimiter = delimiter or excel[1]
    if delimiter is None:
        delimiter = detect_delimiter(text, DELIMITERS[suffix(file)], layout)
    reader = _reader(text, delimiter, quoting=layout.quoting)
    records = _records(file, reader, first=2 if excel else 1, report=report)
    columns = _header(file, records) if layout.header is None else layout.header
    unnamed = 0
    for where, fields in records:
        if len(fields) != len(columns):
            named = ", ".join(column for column in columns if column)
            report(
                where,
                f"{len(fields)} fields, not {len(columns)} ({named}); quote fields that contain the delimiter, or set "
                "data.delimiter or data.quoting",
            )
            continue
        values = [*zip(columns, fields, strict=True)]
        unnamed += any(field.strip() for column, field in values if not column)
        yield where, {column: field for column, field in values if column}
    if unnamed:
        warnings.warn(
            f"{file}: columns without a name in the header are not read; {unnamed:,} rows have a value there",
            stacklevel=2,
        )


def _reader(text: str, delimiter: str, *, quoting: bool) -> Any:
    """Return a `csv.reader`, which counts lines in `line_num`."""
    quotes = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    return csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quotes, strict=True)


def detect_delimiter(text: str, default: str, layout: Layout) -> str:
    """Return the default delimiter, or the one that `csv.Sniffer` finds if only that separates the first line."""
    sample = "".join(islice(io.StringIO(text), SAMPLE))

    def separates(delimiter: str) -> bool:
        found: list[str] = []
        with suppress(csv.Error):
            found = next(_reader(sample, delimiter, quoting=layout.quoting), [])
        return len(found) > 1 if layout.header is None else len(found) == len(layout.header)

    sniffed = default
    if not separates(default):
        with suppress(csv.Error):
            sniffed = csv.Sniffer().sniff(sample, CANDIDATES).delimiter
    return sniffed if separates(sniffed) else default


def _records(
    file: Path, reader: Any, *, first: int, report: Report
) -> Iterator[tuple[str, list[str]]]:
    """Yield each record that is not empty, after its file and first line.

    Raises:
        DataError: a quote is never closed: skipping that record would skip the rest of the file.
    """
    while True:
        begin = reader.line_num
        where = f"{file}, line {begin + first}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{where}: quotes do not match (one that opens here is never closed, so "
                    f"{reader.line_num - begin:,} lines would be one field); close it, or set data.quoting=false if "
                    "quotes are part of the text"
                ) from None
            report(
                where,
                f"quotes do not match ({error}); set data.quoting=false if quotes are part of the text, or "
                "data.delimiter if columns are separated by something else",
            )
        else:
            if fields:
                yield where, fields


def _header(file: Path, records: Iterator[tuple[str, list[str]]]) -> list[str]:
    """Return the column names of the first record; columns with an empty name are not read."""
    where, fields = next(records, (str(file), []))
    names = [name.strip() for name in fields]
    named = [name for name in names if name]
    if not named:
        raise DataError(f"{where}: is empty; add a first line with the column names")
    if len(set(named)) < len(named):
        raise DataError(f"{where}: the header repeats a name ({', '.join(named)}); rename a column")
    return names
