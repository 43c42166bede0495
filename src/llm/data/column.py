"""Texts without labels: the lines of a text file, or a column of a file of rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm.data.delimited import Columns, Layout
from llm.data.errors import DataError
from llm.data.naming import rename_keys
from llm.data.record_reader import is_rows, read_records
from llm.data.text_decoding import read_decoded_text

KEYS = {key: f"rows.{key}" for key in ("text", "columns", "delimiter", "encoding", "quoting")}

ADVICE = "name a text file with one text a line, or rows in .csv, .tsv, .json or .jsonl"


@dataclass(frozen=True)
class Column:
    """The texts to read from a file: lines, or a column of rows.

    Args:
        text: the column or key; None for that of the run.
        columns: see Layout; None for the mapping of the run, if it has one.
        delimiter: see Layout.
        encoding: see Layout.
        quoting: see Layout; None for the setting of the run.
    """

    text: str | None = None
    columns: Columns = None
    delimiter: str | None = None
    encoding: str | None = None
    quoting: bool | None = None

    def with_defaults(self, data: Mapping[str, Any]) -> "Column":
        """Return a copy with the values of a run's data instead of None."""
        columns = data.get("columns")
        found = {
            "text": data.get("text", "text"),
            "columns": columns if isinstance(columns, Mapping) else None,
            "quoting": data.get("quoting", True),
        }
        return replace(self, **{k: v for k, v in found.items() if getattr(self, k) is None})

    def texts(self, file: str) -> list[str]:
        """Return the texts of a file that are not blank.

        Raises:
            DataError: the file cannot be read, or a row lacks the column, or the value is not text.
        """
        with rename_keys(KEYS):
            if is_rows(file):
                read = self._of_rows(file)
            else:
                read = read_decoded_text(Path(file), self.encoding, advice=ADVICE).split("\n")
            return [text for text in read if text.strip()]

    def _of_rows(self, file: str) -> Iterator[str]:
        layout = Layout(self.columns, self.delimiter, self.encoding, self.quoting is not False)
        for where, values in read_records(file, layout):
            if self.text not in values:
                raise DataError(
                    f"{where}: no column {self.text!r} among {', '.join(values)}; name the column of the texts with "
                    "data.text=, or those of a file without a header with 'data.columns=[…]'"
                )
            text = values[self.text]
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{where}: {self.text!r} is {type(text).__name__}, not text; name another column with data.text="
                )
            yield text or ""
