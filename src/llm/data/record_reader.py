"""Rows of CSV, TSV, JSON and JSON Lines files, each with its file and line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm.data import delimited, json_rows
from llm.data.delimited import Layout
from llm.data.download import Download
from llm.data.errors import DataError
from llm.data.malformed import Malformed, Report
from llm.data.text_decoding import read_decoded_text, suffix

SUFFIXES = (*delimited.DELIMITERS, ".json", ".jsonl", ".ndjson")

Paths = str | Path | Sequence[str | Path] | Download


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        where: the file and the line on which the record begins, such as `spam.csv, line 3`.
        values: values by column or key: text from CSV and TSV, any type from JSON.
    """

    where: str
    values: dict[str, Any]


def read_records(
    path: Paths, layout: Layout | None = None, *, malformed: Malformed | None = None
) -> Iterator[Record]:
    """Yield the rows of one or several files, in order; skip blank lines.

    The suffix decides the format: `.csv` and `.tsv`; `.jsonl` and `.ndjson` with one object per line; `.json` with an
    array of objects or one object per line. Each may be gzipped, with any line endings.

    Args:
        path: a file, several files, or a download.
        layout: the format of the rows.
        malformed: collects malformed rows; None raises an error at the first one.

    Raises:
        DataError: a file is missing, damaged or of another format, a CSV or TSV file has no valid
            header, or an array is not valid JSON.
    """
    layout = layout or Layout()
    report = malformed.add if malformed is not None else refuse_record
    for file in local_files(path):
        for where, values in _values_in(file, layout, report=report):
            yield Record(where, layout.rename(values))


def is_rows(path: str | Path) -> bool:
    """Return whether the suffix of a file is that of a file of rows."""
    return suffix(Path(path)) in SUFFIXES


def local_files(path: Paths) -> list[Path]:
    """Return the paths of the files; download a published file if needed."""
    if isinstance(path, Download):
        return [path.file()]
    return [Path(file).expanduser() for file in ([path] if isinstance(path, str | Path) else path)]


def is_here(path: Paths) -> bool:
    """Return whether the files are on this machine."""
    if isinstance(path, Download):
        return path.is_here
    return all(file.is_file() for file in local_files(path))


def title(path: Paths) -> str:
    """Return the name of the files for messages."""
    if isinstance(path, Download):
        return path.name
    return ", ".join(map(str, [path] if isinstance(path, str | Path) else path))


def refuse_record(where: str, problem: str) -> None:
    """Raise a DataError that names a malformed row."""
    raise DataError(f"{where}: {problem}")


def _values_in(
    file: Path, layout: Layout, *, report: Report
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not is_rows(file):
        raise DataError(f"{file}: has no suffix of {', '.join(SUFFIXES)}; rename or convert it")
    text = read_decoded_text(file, layout.encoding)
    if suffix(file) in delimited.DELIMITERS:
        return delimited.read_delimited(file, text, layout, report=report)
    if suffix(file) == ".json" and text.lstrip().startswith("["):
        return json_rows.read_json_array(file, text, report=report)
    json_rows.refuse_one_object(file, text)
    return json_rows.read_json_lines(file, text.split("\n"), report=report)
