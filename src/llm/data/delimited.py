"""CSV and TSV files with any delimiter, with or without Excel's `sep=` line."""

import csv
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llm.data.errors import DataError
from llm.data.text_decoding import suffix

Report = Callable[[str, str], None]
Record = tuple[str, list[str]]

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # by suffix, unless the first line has another
CANDIDATES = ",;\t|"
SAMPLE = 20  # lines used to detect the delimiter
EXCEL = re.compile(r'"?sep=(.)"?\n', re.IGNORECASE)  # Excel's first line, which sets the delimiter

# Python's limit of 131,072 characters is too small for a long document.
csv.field_size_limit(1 << 30)


def delimited(
    file: Path,
    text: str,
    *,
    delimiter: str | None,
    names: Sequence[str] | None,
    quoting: bool,
    report: Report,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the file and line, and the values, of each record.

    Columns without a name are not read; a warning counts the rows with a value in one.

    Args:
        file: the file, for messages.
        text: the content of the file.
        delimiter: character between columns; None detects it.
        names: column names of a file without a header.
        quoting: whether quotes enclose a field.
        report: called with the file and line of a malformed record, and what is wrong.

    Raises:
        DataError: the header is missing or repeats a name, or a quote is never closed.
    """
    excel = EXCEL.match(text)
    if excel:
        text = text[excel.end() :]
        delimiter = delimiter or excel[1]
    if delimiter is None:
        delimiter = delimiter_of(
            text,
            DELIMITERS[suffix(file)],
            quoting=quoting,
            expected=None if names is None else len(names),
        )
    records = _records(
        file, text, delimiter=delimiter, quoting=quoting, report=report, first=2 if excel else 1
    )
    columns = list(names) if names is not None else _header(file, records)
    unnamed = 0
    for where, fields in records:
        if len(fields) != len(columns):
            report(where, _wrong_number(fields, columns))
            continue
        values = dict(zip(columns, fields, strict=True))
        unnamed += any(f.strip() for c, f in zip(columns, fields, strict=True) if not c)
        values.pop("", None)
        yield where, values
    if unnamed:
        warnings.warn(
            f"{file}: columns without a name in the header are not read; {unnamed:,} rows have a value there",
            stacklevel=2,
        )


def delimiter_of(text: str, default: str, *, quoting: bool, expected: int | None) -> str:
    """Return the delimiter of a file.

    It is that of the suffix if it separates the first line. Otherwise it is the one that the standard library's
    sniffer finds, if that separates the first line.

    Args:
        text: the whole file.
        default: the delimiter of the suffix.
        quoting: whether quotes enclose a field.
        expected: the number of columns, if known.
    """
    sample = "".join(islice(io.StringIO(text), SAMPLE))

    def suits(delimiter: str) -> bool:
        found = _first_record(sample, delimiter, quoting=quoting)
        return len(found) == expected if expected is not None else len(found) > 1

    if suits(default):
        return default
    try:
        sniffed = csv.Sniffer().sniff(sample, CANDIDATES).delimiter
    except csv.Error:
        return default
    return sniffed if suits(sniffed) else default


def _first_record(sample: str, delimiter: str, *, quoting: bool) -> list[str]:
    try:
        return next(
            iter(csv.reader(io.StringIO(sample), **_format(delimiter, quoting=quoting))), []
        )
    except csv.Error:
        return []


def _format(delimiter: str, *, quoting: bool) -> dict[str, Any]:
    quotes = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    return {"delimiter": delimiter, "quoting": quotes, "strict": True}


def _records(
    file: Path, text: str, *, delimiter: str, quoting: bool, report: Report, first: int
) -> Iterator[Record]:
    """Yield each record that is not empty, with its first line: a quoted field may have several lines."""
    reader = csv.reader(io.StringIO(text), **_format(delimiter, quoting=quoting))
    while True:
        begin = reader.line_num
        where = f"{file}, line {begin + first}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _refuse_open_quote(where, error, lines=reader.line_num - begin)
            report(
                where,
                f"quotes do not match ({error}); set data.quoting=false if quotes are part of the text, or "
                "data.delimiter if columns are separated by something else",
            )
        else:
            if fields:
                yield where, fields


def _refuse_open_quote(where: str, error: csv.Error, *, lines: int) -> None:
    """Raise a DataError if a quote is never closed: skipping that record would skip the rest of the file."""
    if "unexpected end of data" in str(error):
        raise DataError(
            f"{where}: quotes do not match (one that opens here is never closed, so {lines:,} lines would be one "
            "field); close it, or set data.quoting=false if quotes are part of the text"
        )


def _header(file: Path, records: Iterator[Record]) -> list[str]:
    """Return the column names of the first record; an empty name means that the column is not read."""
    where, fields = next(records, (str(file), []))
    names = [name.strip() for name in fields]
    named = [name for name in names if name]
    if not named:
        raise DataError(f"{where}: is empty; add a first line with the column names")
    if len(set(named)) < len(named):
        raise DataError(f"{where}: the header repeats a name ({', '.join(named)}); rename a column")
    return names


def _wrong_number(fields: Sequence[str], columns: Sequence[str]) -> str:
    named = ", ".join(column for column in columns if column)
    return (
        f"{len(fields)} fields, not {len(columns)} ({named}); quote fields that contain the delimiter, or set "
        "data.delimiter or data.quoting"
    )
