"""The table of a comparison: for a terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from llm.comparison.metric_columns import REPEATED, MetricColumn, metric_columns
from llm.comparison.notes import row_label, table_notes
from llm.comparison.result import Result
from llm.comparison.rows import (
    PER_TOKEN,
    TablePart,
    TableRow,
    differing_keys,
    fold,
    parts,
    split_identical_rows,
)
from llm.config.errors import ConfigError, suggestion
from llm.files import write_text
from llm.runs import Run
from llm.terminal.console import new_console, printable
from llm.terminal.tables import note_line
from llm.units import UNKNOWN

Seeds = Literal["folded", "rows"]
MARGIN = "_margin"  # half the width of an interval
SETTINGS = "settings"  # the column of all settings, in a terminal too narrow for a column of each
WORD = 14  # characters of a word that a narrow terminal does not break
STYLES = {"failed": "red", "running": "cyan", "interrupted": "yellow", "pending": "dim"}
# Names in metrics.csv of metrics that have a column.
SYNONYMS = {"val/loss": "best_loss", "val/bits_per_byte": "bits_per_byte"}
# Columns that a narrow terminal leaves out, in this order.
SPARED = ("trained_parameters", "mfu", "final_loss", "peak_gib", "tokens_per_second", "parameters")


class Cell(NamedTuple):
    """A value in two forms: for files and for people."""

    value: object
    text: str


Line = Mapping[str, Cell]  # the cells of a row by column


@dataclass(frozen=True)
class Table:
    """A comparison of runs.

    Attributes:
        keys: the settings in which the rows differ.
        parts: groups of comparable rows.
        metrics: the metric columns.
        notes: lines below the table.
        confidence: confidence of the intervals.
    """

    keys: Sequence[str]
    parts: Sequence[TablePart]
    metrics: Sequence[MetricColumn]
    notes: Sequence[str]
    confidence: float

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return list(self._lines[0]) if self._lines else []

    @property
    def rows(self) -> list[dict[str, object]]:
        """Return the rows by column, as in the CSV: numbers without units, None if unknown."""
        return [{name: cell.value for name, cell in line.items()} for line in self._lines]

    @property
    def best(self) -> list[Run]:
        """Return the best run of each part."""
        return [run for part in self.parts if (run := part.best) is not None]

    # As text

    def write(self, folder: Path) -> list[Path]:
        """Write `table.csv`, `table.md` and, if there is a curve, `loss.png`; return the written files.

        Replaces each file atomically, because jobs of a sweep may end at the same time.
        """
        # Here, because matplotlib takes half a second to import.
        from llm.comparison.picture import draw_comparison

        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / "table.csv": self.csv(), folder / "table.md": self.markdown()}
        for file, text in files.items():
            write_text(file, text)
        picture = folder / "loss.png"
        is_drawn = draw_comparison(self.parts, picture, keys=self.keys, confidence=self.confidence)
        return [*files, *([picture] if is_drawn else [])]

    def csv(self) -> str:
        """Return the table as CSV, with half the width of each interval."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return printable(text.getvalue())

    def markdown(self) -> str:
        """Return the table and its notes as GitHub Markdown."""
        names = self._shown(self._lines)
        lines = [
            [self._title(name) for name in names],
            ["---:" if self._is_number(name) else "---" for name in names],
            *([_in_markdown(line[name].text) for name in names] for line in self._lines),
        ]
        table = [f"| {' | '.join(line)} |" for line in lines]
        return printable("\n".join([*table, "", *(f"- {note}" for note in self.notes), ""]))

    def render(self, width: int | None = None) -> Group:
        """Return a table for a terminal, without the columns that do not fit.

        Args:
            width: width in characters; None takes that of the terminal.
        """
        width = width or new_console().width
        for cells in (self._lines, self._in_one_column()):
            names, left_out, fits = self._fitting(cells, width)
            if fits:
                break
        failed = [row for row in self._rows if row.errors]
        errors = [f"{row_label(row, self.keys)} failed: {row.errors}" for row in failed]
        notes = [*errors, *self.notes]
        if left_out:
            notes.append(
                f"no room for {', '.join(left_out)}: use a wider terminal, or read the files, which have all columns"
            )
        return Group(self._rich(cells, names), *map(note_line, notes))

    def _fitting(self, lines: Sequence[Line], width: int) -> tuple[list[str], list[str], bool]:
        """Return the columns to display, the titles of those without room, and whether a terminal has this width."""
        endless = new_console(width=10_000)  # a narrow one reports that everything fits
        names, left_out = [name for name in self._shown(lines) if name != "error"], []

        def fits() -> bool:
            return endless.measure(self._rich(lines, names)).minimum <= width

        for spared in (name for name in SPARED if name in names):
            if fits():
                break
            names.remove(spared)
            left_out.append(self._title(spared))
        return names, left_out, fits()

    def _in_one_column(self) -> list[Line]:
        """Return the rows with all settings in one column, as words of a command line."""
        found = []
        for line in self._lines:
            words = [f"{key}={line[key].text}" for key in self.keys if line[key].value is not None]
            one = Cell(None, " ".join(words) or UNKNOWN)
            before = {name: line[name] for name in ("rank", "data") if name in line}
            others = {name: cell for name, cell in line.items() if name not in self.keys}
            found.append(before | {SETTINGS: one} | others)
        return found

    def _rich(self, lines: Sequence[Line], names: Sequence[str]) -> RichTable:
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in names:
            title, cells = self._title(name), [line[name].text for line in lines]
            if self._is_number(name):
                title = "\n".join(title.rsplit(" ", 1))
            least = max(
                len(piece) for text in (title, *cells) for piece in text.splitlines() or "–"
            )
            table.add_column(
                title,
                justify="right" if self._is_number(name) else "left",
                vertical="middle",
                min_width=least if self._is_number(name) else min(least, WORD),
                overflow="fold",
            )
        ends = set(accumulate(len(part.rows) for part in self.parts))
        for number, line in enumerate(lines, start=1):
            style = STYLES.get(str(line["status"].value), "") if "status" in line else ""
            best = "bold" if line["rank"].value == 1 else ""
            cells = (Text(line[name].text) for name in names)
            table.add_row(*cells, style=style or best, end_section=number in ends)
        return table

    # Cells

    @property
    def _rows(self) -> list[TableRow]:
        return [row for part in self.parts for row in part.rows]

    @cached_property
    def _optional(self) -> set[str]:
        """The columns about the outcome of runs that are not empty."""
        found = {
            "seeds": any(len(row.results) > 1 for row in self._rows),
            "status": any(row.status != "done" for row in self._rows),
            "error": any(row.errors for row in self._rows),
        }
        return {name for name, has_values in found.items() if has_values}

    @cached_property
    def _lines(self) -> list[dict[str, Cell]]:
        return [self._line(part, row) for part in self.parts for row in part.rows]

    def _line(self, part: TablePart, row: TableRow) -> dict[str, Cell]:
        """Return the cells of a row by column."""
        # Words of the label without a column of their own.
        label = [word for word in part.label.split() if word.partition("=")[0] not in self.keys]
        settings = dict(zip(self.keys, row.settings, strict=True))
        rank = {"rank": part.rank(row, self.confidence)}
        data = {"data": " ".join(label) or None} if len(self.parts) > 1 else {}
        outcome = {"seeds": len(row.counted), "status": row.status, "error": row.errors or None}
        shown = {name: value for name, value in outcome.items() if name in self._optional}
        line = {
            name: Cell(value, UNKNOWN if value is None else str(value))
            for name, value in (rank | data | settings | shown).items()
        }
        for column in self.metrics:
            line |= self._cells(part, row, column=column)
        return line

    def _cells(self, part: TablePart, row: TableRow, *, column: MetricColumn) -> dict[str, Cell]:
        """Return the cells of a metric and of its interval, if a row has repetitions."""
        is_comparable = part.tokenizers == 1 or not column.name.endswith(PER_TOKEN)
        found = row.estimate(column.name, self.confidence) if is_comparable else None
        cells = {column.name: Cell(found and _plain(found.mean), column.text(found))}
        if column.is_measured and "seeds" in self._optional:
            cells[column.name + MARGIN] = Cell(found and found.margin, "")
        return cells

    def _shown(self, lines: Sequence[Line]) -> list[str]:
        """Return the columns to display; an interval is displayed beside its mean, without a column."""
        return [name for name in (lines[0] if lines else ()) if not name.endswith(MARGIN)]

    def _title(self, name: str) -> str:
        titles = {"rank": "#", **{column.name: column.title for column in self.metrics}}
        return titles.get(name, name)

    def _is_number(self, name: str) -> bool:
        return name in ("rank", "seeds", *(column.name for column in self.metrics))


def compare(
    runs: Sequence[Run],
    by: str | None = None,
    *,
    confidence: float = 0.95,
    seeds: Seeds = "folded",
    remarks: Sequence[str] = (),
) -> Table:
    """Compare runs by `run.json` and `metrics.csv`.

    Args:
        runs: runs of any status, in any order.
        by: the metric to rank by, such as `test/accuracy`; None takes the best validation loss, or bits per
            byte if tokenizers differ.
        confidence: confidence of the intervals over seeds.
        seeds: one row for all seeds of a recipe (`folded`), or one for each (`rows`).
        remarks: further notes.

    Raises:
        ConfigError: no run has the metric to rank by.
    """
    results = [Result(run) for run in sorted(runs, key=lambda run: str(run.path))]
    names = {name for each in results for name in each.metrics}
    by = by and SYNONYMS.get(by, by)
    if by is not None and by not in names:
        raise ConfigError(f"by: no run has the metric {by}; {suggestion(by, names)}")
    keys = differing_keys(results)
    rows = fold(results, keys, by_seed=seeds == "rows")
    if seeds == "rows" and len({each.seed for each in results}) > 1:
        keys = [*keys, "seed"]
        rows = [replace(row, settings=(*row.settings, _seed(row))) for row in rows]
    more, found = split_identical_rows(parts(rows, by))
    keys = [*keys, more] if more else keys
    lines = [
        *remarks,
        *(each.damage for each in results if each.damage),
        *table_notes(found, keys, by=by, confidence=confidence),
    ]
    return Table(keys, found, _shown_metrics(results, by), lines, confidence)


def _shown_metrics(results: Sequence[Result], by: str | None) -> list[MetricColumn]:
    """Return the columns of metrics that some run has; a task's own metrics only if they differ between runs."""
    metrics = [each.metrics for each in results]
    values: dict[str, set[float]] = {}
    for each in metrics:
        for name, value in each.items():
            values.setdefault(name, set()).add(value)
    own = [
        name
        for prefix in ("val/", "test/")
        for name in sorted(values)
        if name.startswith(prefix)
        if name == by or (name not in REPEATED and len(values[name]) > 1)
    ]
    if all(each.get("trained_parameters") == each.get("parameters") for each in metrics):
        values.pop("trained_parameters", None)
    return [column for column in metric_columns(own) if column.name in values]


def _in_markdown(text: str) -> str:
    """Return a text as a Markdown cell of one line."""
    return " ".join(text.replace("|", "\\|").splitlines())


def _seed(row: TableRow) -> str | None:
    seed = row.results[0].seed
    return None if seed is None else str(seed)


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value
