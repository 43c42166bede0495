"""Delimited files as people have them: CSV and TSV of any separator, with Excel's first line or without."""

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

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # by the suffix, unless the first line shows another
CANDIDATES = ",;\t|"
SAMPLE = 20  # lines that are read to find the delimiter
EXCEL = re.compile(r'"?sep=(.)"?\n', re.IGNORECASE)  # a first line that names the delimiter

csv.field_size_limit(1 << 30)  # a long document is not an error; the limit is 131,072 characters


def delimited(
    file: Path,
    text: str,
    *,
    delimiter: str | None,
    names: Sequence[str] | None,
    quoting: bool,
    report: Report,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the values of each record of a file.

    Columns without a name are not read, and a warning counts the rows that hold something in them.

    Args:
        file: where the text comes from.
        text: the whole file.
        delimiter: what separates columns; None finds it out.
        names: names of the columns of a file without a header.
        quoting: whether quotes enclose a field.
        report: takes the place of a malformed record and what is wrong with it.

    Raises:
        DataError: the header is missing or names a column twice, or a quote is never closed.
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
            f"{file}: columns without a name in the header are not read; they hold something in {unnamed:,} rows",
            stacklevel=2,
        )


def delimiter_of(text: str, default: str, *, quoting: bool, expected: int | None) -> str:
    """The delimiter of a file.

    That of the suffix is kept if it separates the first line; otherwise the standard library's sniffer is
    asked, which is believed if its delimiter does.

    Args:
        text: the whole file.
        default: the delimiter of the suffix.
        quoting: whether quotes enclose a field.
        expected: the number of columns if that is known.
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
    """The records with fields, each with the line on which it begins: a quoted field may hold several."""
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
    """Raise a DataError if a quote is never closed: leaving that record out would leave out all that follows."""
    if "unexpected end of data" in str(error):
        raise DataError(
            f"{where}: quotes do not match (one that opens here is never closed, so {lines:,} lines would be one "
            "field); close it, or set data.quoting=false if quotes are part of the text"
        )


def _header(file: Path, records: Iterator[Record]) -> list[str]:
    """The names of the columns, empty where there is none; columns that are empty at the end have none."""
    where, fields = next(records, (str(file), []))
    names = [name.strip() for name in fields]
    named = [name for name in names if name]
    if not named:
        raise DataError(f"{where}: is empty: a first line that names the columns is needed")
    if len(set(named)) < len(named):
        raise DataError(f"{where}: a column is named twice in the header: {', '.join(named)}")
    return names


def _wrong_number(fields: Sequence[str], columns: Sequence[str]) -> str:
    named = ", ".join(column for column in columns if column)
    return (
        f"{len(fields)} fields, not {len(columns)} ({named}); quote fields that hold the delimiter, or set "
        "data.delimiter or data.quoting"
    )
