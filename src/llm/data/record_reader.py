"""Rows of labelled and paired data: CSV, TSV, JSON and JSON lines, each known by its file and line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm.data import delimited, json_rows
from llm.data.download import Download
from llm.data.errors import DataError
from llm.data.malformed import Malformed
from llm.data.text_decoding import read_decoded_text, suffix

SUFFIXES = (*delimited.DELIMITERS, ".json", ".jsonl", ".ndjson")

Paths = str | Path | Sequence[str | Path] | Download
Columns = Sequence[str] | Mapping[str, str] | None


class Record(NamedTuple):
    """One record of a file.

    Attributes:
        where: The file and the line on which the record begins, such as `spam.csv, line 3`.
        values: What it holds by column or key: text from CSV and TSV, anything from JSON.
    """

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How rows are written in files; what is None is found out for each file.

    Args:
        columns: Names of the columns of a CSV or TSV file without a header; or a mapping from our name of
            a field to the name that the files give it.
        delimiter: One character between the columns of CSV and TSV; a backslash and a t are a tab.
        encoding: The encoding of files without a byte-order mark, such as cp1252; by default UTF-8.
        quoting: Whether quotes in CSV and TSV enclose a field; otherwise they are part of the text.

    Raises:
        ValueError: The delimiter is not one character, or two of our names have one of theirs.
    """

    columns: Columns = None
    delimiter: str | None = None
    encoding: str | None = None
    quoting: bool = True

    def __post_init__(self) -> None:
        theirs = [*self.columns.values()] if isinstance(self.columns, Mapping) else []
        if len(set(theirs)) < len(theirs):
            raise ValueError(
                f"columns: two of {', '.join(theirs)} are the same; map each field once"
            )
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", self.delimiter.replace("\\t", "\t"))
            if len(self.delimiter) != 1 or self.delimiter in '"\n\r':
                raise ValueError(
                    f"delimiter={self.delimiter!r}: give one character, such as ';' or '\\t'"
                )

    @property
    def header(self) -> Sequence[str] | None:
        """The names of the columns of a file without a header."""
        return None if isinstance(self.columns, Mapping) else self.columns

    def renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a row, and of the objects in its lists, by our names."""
        if not isinstance(self.columns, Mapping):
            return values
        ours = {theirs: name for name, theirs in self.columns.items()}
        return {
            ours.get(name, name): [_renamed(item, ours) for item in value]
            if isinstance(value, list)
            else value
            for name, value in values.items()
        }


def read_records(
    path: Paths, layout: Layout | None = None, *, malformed: Malformed | None = None
) -> Iterator[Record]:
    """Yield the rows of one file or of several, in order; blank lines are passed over.

    The name says the format: `.csv` and `.tsv` with a header, `.jsonl` and `.ndjson` with an object a line,
    `.json` with an array of objects or an object a line; each may be gzipped (`.gz`). Any kind of line ends
    is read.

    Args:
        path: The file, or the files, or one to download.
        layout: How the rows are written.
        malformed: Where rows that are no rows at all are noted; without it the first one is an error.

    Raises:
        DataError: A file is missing, damaged or of another kind, a CSV or TSV file has no proper
            header, or an array cannot be read to its end.
    """
    layout = layout or Layout()
    report = malformed.add if malformed is not None else _stop
    for file in files_of(path):
        for where, values in _values_in(file, layout, report=report):
            yield Record(where, layout.renamed(values))


def is_rows(path: str | Path) -> bool:
    """Whether the name of a file says that it holds rows."""
    return suffix(Path(path)) in SUFFIXES


def files_of(path: Paths) -> list[Path]:
    """The files on this machine; one that is published is fetched if need be."""
    if isinstance(path, Download):
        return [path.file()]
    return [Path(file).expanduser() for file in ([path] if isinstance(path, str | Path) else path)]


def is_here(path: Paths) -> bool:
    """Whether the files are on this machine already."""
    if isinstance(path, Download):
        return path.is_here
    return all(file.is_file() for file in files_of(path))


def title(path: Paths) -> str:
    """What a summary line calls the files."""
    if isinstance(path, Download):
        return path.name
    return ", ".join(map(str, [path] if isinstance(path, str | Path) else path))


def _stop(where: str, problem: str) -> None:
    raise DataError(f"{where}: {problem}")


def _values_in(
    file: Path, layout: Layout, *, report: delimited.Report
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not is_rows(file):
        raise DataError(
            f"{file}: its name ends in none of {', '.join(SUFFIXES)}; rename or convert it"
        )
    text = read_decoded_text(file, layout.encoding)
    if suffix(file) in delimited.DELIMITERS:
        return delimited.delimited(
            file,
            text,
            delimiter=layout.delimiter,
            names=layout.header,
            quoting=layout.quoting,
            report=report,
        )
    if suffix(file) == ".json" and text.lstrip().startswith("["):
        return json_rows.array(file, text, report=report)
    return json_rows.json_lines(file, text, report=report)


def _renamed(item: Any, ours: Mapping[str, str]) -> Any:
    return (
        {ours.get(key, key): value for key, value in item.items()}
        if isinstance(item, dict)
        else item
    )
