"""The table of a comparison: for a terminal, as Markdown, as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from llm.comparison.metric_columns import REPEATED, MetricColumn, metric_columns
from llm.comparison.notes import row_label, table_notes
from llm.comparison.picture import draw_comparison
from llm.comparison.result import Result
from llm.comparison.rows import (
    TablePart,
    TableRow,
    differing_keys,
    fold,
    is_per_token,
    parts,
    split_identical_rows,
)
from llm.config.errors import ConfigError, suggestion
from llm.files import write_text
from llm.runs import Run
from llm.terminal.console import new_console, printable
from llm.units import UNKNOWN

Seeds = Literal["folded", "rows"]
MARGIN = "_margin"  # half the width of an interval
WORD = 14  # characters of a word that a narrow terminal leaves in one piece
STYLES = {"failed": "red", "running": "cyan", "interrupted": "yellow", "pending": "dim"}
# What metrics.csv calls a figure that has a column.
SYNONYMS = {"val/loss": "best_loss", "val/bits_per_byte": "bits_per_byte"}
# What a narrow terminal does without, the first word first.
SPARED = ("trained_parameters", "mfu", "final_loss", "peak_gib", "tokens_per_second", "parameters")


class Cell(NamedTuple):
    """A value twice: as files have it and as a person reads it."""

    value: object
    text: str


@dataclass(frozen=True)
class Table:
    """Runs beside one another.

    Attributes:
        keys: what the rows differ in.
        parts: rows that compare, together.
        figures: what is shown of each.
        notes: what a reader has to know, a line each.
        confidence: of the intervals.
    """

    keys: Sequence[str]
    parts: Sequence[TablePart]
    figures: Sequence[MetricColumn]
    notes: Sequence[str]
    confidence: float

    @property
    def columns(self) -> list[str]:
        """Names of the columns; those that depend on the clock and the machine stand last."""
        return list(self._lines[0]) if self._lines else []

    @property
    def rows(self) -> list[dict[str, object]]:
        """The rows by column, as CSV has them: numbers without units, None where nothing is known."""
        return [{name: cell.value for name, cell in line.items()} for line in self._lines]

    @property
    def best(self) -> list[Run]:
        """The best run of each part."""
        return [run for part in self.parts if (run := part.best) is not None]

    # As text

    def write(self, folder: Path) -> list[Path]:
        """Write `table.csv`, `table.md` and, where there is a curve to draw, `loss.png`.

        Each is replaced at once: jobs of a sweep may end together.

        Returns:
            The files that were written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, write in (("table.csv", self.csv), ("table.md", self.markdown)):
            write_text(folder / name, write())
            written.append(folder / name)
        picture = folder / "loss.png"
        if draw_comparison(self.parts, picture, keys=self.keys, confidence=self.confidence):
            written.append(picture)
        return written

    def csv(self) -> str:
        """Comma-separated values; intervals are given by half their width."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return printable(text.getvalue())

    def markdown(self) -> str:
        """A table of GitHub's Markdown, with the notes below it."""
        names = self._shown()
        lines = [
            [self._title(name) for name in names],
            ["---:" if self._is_number(name) else "---" for name in names],
            *([_in_markdown(line[name].text) for name in names] for line in self._lines),
        ]
        table = [f"| {' | '.join(line)} |" for line in lines]
        text = "\n".join([*table, *(["", *(f"- {note}" for note in self.notes)]), ""])
        return printable(text)

    def render(self, width: int | None = None) -> Group:
        """A table for a terminal, without the columns there is no room for.

        Args:
            width: columns of the terminal; None asks it.
        """
        width = width or new_console().width
        endless = new_console(width=10_000)  # a narrow one would say that all fits
        names = [name for name in self._shown() if name != "error"]
        left_out = []
        for spared in (name for name in SPARED if name in names):
            if endless.measure(self._rich(names)).minimum <= width:
                break
            names.remove(spared)
            left_out.append(self._title(spared))
        lines = [*self._errors(), *self.notes]
        if left_out:
            lines.append(
                f"no room for {', '.join(left_out)}: a wider terminal shows all, and so do the files"
            )
        return Group(self._rich(names), *(Text(f"· {line}", style="dim") for line in lines))

    def _rich(self, names: Sequence[str]) -> RichTable:
        table = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in names:
            title, cells = self._title(name), [line[name].text for line in self._lines]
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
        ends = {
            sum(len(part.rows) for part in self.parts[: at + 1]) - 1
            for at in range(len(self.parts))
        }
        for at, line in enumerate(self._lines):
            style = STYLES.get(str(line["status"].value), "") if "status" in line else ""
            best = "bold" if line["rank"].value == 1 else ""
            cells = (Text(line[name].text) for name in names)
            table.add_row(*cells, style=style or best, end_section=at in ends)
        return table

    def _errors(self) -> list[str]:
        """A line for each row of which something failed."""
        rows = [row for part in self.parts for row in part.rows]
        return [f"{row_label(row, self.keys)} failed: {row.errors}" for row in rows if row.errors]

    # What the cells say

    @cached_property
    def _lines(self) -> list[dict[str, Cell]]:
        return [self._line(part, row) for part in self.parts for row in part.rows]

    def _line(self, part: TablePart, row: TableRow) -> dict[str, Cell]:
        """The cells of a row by column."""
        line = {"rank": word(part.rank(row, self.confidence))}
        if len(self.parts) > 1:
            told = (w for w in part.label.split() if w.partition("=")[0] not in self.keys)
            line["data"] = word(" ".join(told) or None)  # and the rest in columns of its own
        line |= {key: word(value) for key, value in zip(self.keys, row.settings, strict=True)}
        if self._has_seeds:
            line["seeds"] = word(len(row.counted))
        if self._has_status:
            line["status"] = word(row.status)
        if self._has_errors:
            line["error"] = word(row.errors or None)
        for figure in self.figures:
            line |= self._cells(part, row, figure=figure)
        return line

    def _cells(self, part: TablePart, row: TableRow, *, figure: MetricColumn) -> dict[str, Cell]:
        """A figure, and its interval where some row has repetitions."""
        is_told = part.tokenizers == 1 or not is_per_token(figure.name)
        found = row.estimate(figure.name, self.confidence) if is_told else None
        cells = {figure.name: Cell(found and _plain(found.mean), figure.text(found))}
        if figure.is_measured and self._has_seeds:
            cells[figure.name + MARGIN] = Cell(found and found.margin, "")
        return cells

    @cached_property
    def _has_seeds(self) -> bool:
        return any(len(row.results) > 1 for part in self.parts for row in part.rows)

    @cached_property
    def _has_status(self) -> bool:
        return any(row.status != "done" for part in self.parts for row in part.rows)

    @cached_property
    def _has_errors(self) -> bool:
        return any(row.errors for part in self.parts for row in part.rows)

    def _shown(self) -> list[str]:
        """Columns for a person, who reads an interval beside its mean."""
        return [name for name in self.columns if not name.endswith(MARGIN)]

    def _title(self, name: str) -> str:
        titles = {"rank": "#", **{figure.name: figure.title for figure in self.figures}}
        return titles.get(name, name)

    def _is_number(self, name: str) -> bool:
        return name in ("rank", "seeds", *(figure.name for figure in self.figures))


def compare(
    runs: Sequence[Run],
    by: str | None = None,
    *,
    confidence: float = 0.95,
    seeds: Seeds = "folded",
    remarks: Sequence[str] = (),
) -> Table:
    """Put runs beside one another, from `run.json` and `metrics.csv` alone.

    The order of the runs does not matter: the same runs give the same table.

    Args:
        runs: of any status.
        by: the figure to rank by, such as `test/accuracy`; None takes the best validation loss, or bits per
            byte where tokenizers differ.
        confidence: of the intervals over seeds.
        seeds: whether seeds of one recipe are a row, or each is.
        remarks: notes of the caller's, such as of runs that cannot be read.

    Raises:
        ConfigError: no run has the figure to rank by.
    """
    results = [Result(run) for run in sorted(runs, key=lambda run: str(run.path))]
    names = {name for each in results for name in each.figures}
    by = by and SYNONYMS.get(by, by)
    if by is not None and by not in names:
        raise ConfigError(f"by: no run has the metric {by}; {suggestion(by, names)}")
    keys = differing_keys(results)
    rows = fold(results, keys, by_seed=seeds == "rows")
    if seeds == "rows" and len({each.seed for each in results}) > 1:
        keys = [*keys, "seed"]
        rows = [replace(row, settings=(*row.settings, _seed(row))) for row in rows]
    more, found = split_identical_rows(parts(rows, by, confidence=confidence))
    keys = [*keys, more] if more else keys
    lines = [
        *remarks,
        *(each.damage for each in results if each.damage),
        *table_notes(found, keys, by=by, confidence=confidence),
    ]
    return Table(keys, found, _shown_figures(results, by), lines, confidence)


def _shown_figures(results: Sequence[Result], by: str | None) -> list[MetricColumn]:
    """The figures that some run has, of a task's own those that differ."""
    values: dict[str, set[float]] = {}
    for each in results:
        for name, value in each.figures.items():
            values.setdefault(name, set()).add(value)
    own = sorted(
        (
            name
            for name in values
            if name.startswith(("val/", "test/")) and (name not in REPEATED or name == by)
        ),
        key=lambda name: (name.startswith("test/"), name),
    )
    shown = metric_columns([name for name in own if len(values[name]) > 1 or name == by])
    is_adapted = any(
        each.figures.get("trained_parameters") != each.figures.get("parameters") for each in results
    )
    return [
        figure
        for figure in shown
        if figure.name in values and (figure.name != "trained_parameters" or is_adapted)
    ]


def word(value: object) -> Cell:
    """A cell that files and people read alike."""
    return Cell(value, UNKNOWN if value is None else str(value))


def _in_markdown(text: str) -> str:
    """A text as a cell of a table has it, which is one line."""
    return " ".join(text.replace("|", "\\|").splitlines())


def _seed(row: TableRow) -> str | None:
    seed = row.results[0].seed
    return None if seed is None else str(seed)


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value
