"""The format of rows in files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Columns = Sequence[str] | Mapping[str, str] | None


@dataclass(frozen=True)
class Layout:
    """The format of rows in files.

    Args:
        columns: column names of a CSV or TSV file without a header; or a mapping from our name of a
            field to its name in the files.
        delimiter: one character between the columns of CSV and TSV, or a backslash and t for a tab; None detects
            it for each file.
        encoding: the encoding of files without a byte-order mark, such as cp1252; by default UTF-8.
        quoting: whether quotes in CSV and TSV enclose a field, or are part of the text.

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
