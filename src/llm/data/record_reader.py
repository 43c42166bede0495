"""Rows of CSV, TSV, JSON and JSON Lines files, each with its file and line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm.data import delimited, json_rows
from llm.data.download import Download
from llm.data.errors import DataError
from llm.data.malformed import Malformed, Report
from llm.data.text_decoding import read_decoded_text, suffix

SUFFIXES = (*delimited.DELIMITERS, ".json", ".jsonl", ".ndjson")

Paths = str | Path | Sequence[str | Path] | Download
Columns = Sequence[str] | Mapping[str, str] | None


class Record(NamedTuple):
    """A record of a file.

    Attributes:
        where: the file and the line on which the record begins, such as `spam.csv, line 3`.
        values: values by column or key: text from CSV and TSV, any type from JSON.
    """

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The format of rows in files.

    Args:
        columns: column names of a CSV or TSV file without a header; or a mapping from our name of a
            field to its name in the files.
        delimiter: one character between the columns of CSV and TSV; a backslash followed by t is a tab. None
            detects it for each file.
        encoding: the encoding of files without a byte-order mark, such as cp1252; by default UTF-8.
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


def read_records(
    path: Paths, layout: Layout | None = None, *, malformed: Malformed | None = None
) -> Iterator[Record]:
    """Yield the rows of one or several files, in order; skip blank lines.

    The suffix decides the format: `.csv` and `.tsv` with a header; `.jsonl` and `.ndjson` with one object per
    line; `.json` with an array of objects or one object per line. Each may be gzipped, with any line endings.

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
        return delimited.read_delimited(
            file,
            text,
            delimiter=layout.delimiter,
            names=layout.header,
            quoting=layout.quoting,
            report=report,
        )
    if suffix(file) == ".json" and text.lstrip().startswith("["):
        return json_rows.read_json_array(file, text, report=report)
    json_rows.refuse_one_object(file, text)
    return json_rows.read_json_lines(file, text.split("\n"), report=report)
