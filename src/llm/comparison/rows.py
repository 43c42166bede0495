"""The rows of a table: repetitions of one recipe together, rows on the same data together, best first."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from llm.comparison.interval import MeanInterval, mean_interval
from llm.comparison.result import Result
from llm.runs import Run

# Metrics for which lower is better.
LESS_IS_BETTER = (
    *("loss", "perplexity", "bits_per_byte", "kl"),
    *("seconds", "peak_gib", "parameters", "tokens"),
)
# Means over tokens, which depend on the tokenizer.
PER_TOKEN = ("loss", "perplexity")


@dataclass(frozen=True, eq=False)
class TableRow:
    """Repetitions of one recipe: runs that differ in their seed.

    Attributes:
        settings: values of the columns that distinguish it from other rows; None if unknown.
        results: the repetitions, sorted by seed.
    """

    settings: tuple[str | None, ...]
    results: tuple[Result, ...]

    @property
    def counted(self) -> tuple[Result, ...]:
        """Return the repetitions to compute metrics from: the finished ones, or all if none is finished."""
        return tuple(each for each in self.results if each.status == "done") or self.results

    @property
    def is_done(self) -> bool:
        """Return whether a run is finished."""
        return self.counted[0].status == "done"

    @property
    def status(self) -> str:
        """Return the status of its repetitions, in one word if they agree."""
        counts = Counter(each.status for each in self.results)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{counts[word]} {word}" for word in sorted(counts))

    @property
    def errors(self) -> str:
        """Return the errors of the failed repetitions."""
        return "; ".join(dict.fromkeys(each.error for each in self.results if each.error))

    @property
    def recipe(self) -> str | None:
        """Return the fingerprint of the repetitions."""
        return next((each.recipe for each in self.results if each.recipe), None)

    @property
    def data(self) -> set[str]:
        """Return the data of the repetitions."""
        return {each.data for each in self.results if each.data is not None}

    def values(self, metric: str) -> list[float]:
        """Return the values of a metric in the counted repetitions that have it."""
        return [each.metrics[metric] for each in self.counted if metric in each.metrics]

    def estimate(self, metric: str, confidence: float) -> MeanInterval | None:
        """Return the mean of a metric with its interval; None without a value."""
        values = self.values(metric)
        return mean_interval(values, confidence) if values else None


class TablePart(NamedTuple):
    """Rows that were measured on the same data.

    Attributes:
        label: name of the data; empty if nothing was measured.
        rows: the rows, best first, then the unranked ones.
        ranked: number of ranked rows.
        tokenizers: number of tokenizers, or of other units of a loss.
        metric: the metric of the ranks; empty if none is comparable.
    """

    label: str
    rows: Sequence[TableRow]
    ranked: int
    tokenizers: int
    metric: str

    @property
    def best(self) -> Run | None:
        """Return the best run of the first row, if it is ranked."""
        if not self.ranked:
            return None
        known = [each for each in self.rows[0].counted if self.metric in each.metrics]
        return min(known, key=lambda each: direction(self.metric) * each.metrics[self.metric]).run

    def rank(self, row: TableRow, confidence: float) -> int | None:
        """Return one more than the number of rows whose whole interval is better; None if unranked.

        Rows whose intervals overlap may share a rank.

        Args:
            row: one of the rows.
            confidence: confidence of the intervals.
        """
        ranked = self.rows[: self.ranked]
        if row not in ranked:
            return None
        ends: dict[TableRow, tuple[float, float]] = {}
        for each in ranked:
            if (found := each.estimate(self.metric, confidence)) is not None:
                mean, margin = direction(self.metric) * found.mean, found.margin or 0.0
                ends[each] = mean - margin, mean + margin
        return 1 + sum(highest < ends[row][0] for _, highest in ends.values())


def best_loss(run: Run) -> float | None:
    """Return the lowest validation loss of a run so far."""
    return Result(run).metrics.get("best_loss")


# Columns that distinguish runs


def differing_keys(results: Sequence[Result]) -> list[str]:
    """Return the keys that distinguish runs: overrides, then choices that distinguish runs with equal overrides.

    For example, the options that a model selects are left out, because the model's name already distinguishes the runs.
    """
    positions: dict[str, int] = {}
    for result in results:
        for position, key in enumerate(result.overrides):
            positions[key] = min(position, positions.get(key, position))
    keys = sorted(positions, key=lambda key: (positions[key], key))
    shown = [key for key in keys if _differs(key, results)]
    for key in sorted({key for each in results for key in each.choices} - positions.keys()):
        if _differs(key, results) and _distinguishes_further(key, shown, results=results):
            shown.append(key)
    return shown


def _differs(key: str, results: Sequence[Result]) -> bool:
    """Return whether a key has two or more values; a choice that is not recorded may equal any of them."""
    values = {each.settings.get(key) for each in results}
    is_choice = any(key in each.choices for each in results)
    return len(values - {None} if is_choice else values) > 1


def _distinguishes_further(key: str, shown: Sequence[str], *, results: Sequence[Result]) -> bool:
    """Return whether a choice differs between runs that have the same values of `shown`."""
    values: dict[Hashable, set[str]] = {}
    for each in results:
        if key in each.choices and key in each.settings:
            values.setdefault(_settings(each, shown), set()).add(each.settings[key])
    return any(len(found) > 1 for found in values.values())


def _settings(result: Result, keys: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(result.settings.get(key) for key in keys)


# Repetitions


def fold(
    results: Sequence[Result], keys: Sequence[str], *, by_seed: bool = False
) -> list[TableRow]:
    """Group repetitions into rows.

    A second run of a recipe and seed gets a row of its own. A run that never started gets the recipe of the runs with
    the same settings, if they have only one.

    Args:
        results: the runs.
        keys: the settings in which they differ.
        by_seed: whether each seed is a row of its own.
    """
    recipes: dict[Hashable, set[str | None]] = {}
    for each in results:
        recipes.setdefault(_settings(each, keys), set()).update({each.recipe} - {None})
    rows: dict[Hashable, list[Result]] = {}
    seen: Counter[Hashable] = Counter()
    for each in sorted(results, key=lambda each: (natural(each.seed), str(each.run.path))):
        settings = _settings(each, keys)
        known = recipes[settings]
        recipe = each.recipe or (next(iter(known)) if len(known) == 1 else None)
        seen[settings, recipe, each.seed] += 1
        again = seen[settings, recipe, each.seed]
        own = each.seed if by_seed else None
        rows.setdefault((settings, recipe, again, own), []).append(each)
    return [TableRow(key[0], tuple(found)) for key, found in rows.items()]  # type: ignore


# Parts of comparable rows


def parts(rows: Sequence[TableRow], by: str | None) -> list[TablePart]:
    """Group rows with common data.

    Args:
        rows: all rows.
        by: the metric to rank by; None takes the validation loss, or bits per byte if tokenizers differ.
    """
    groups: list[list[TableRow]] = []
    for row in rows:
        if row.data:
            near = [own for own in groups if any(row.data & other.data for other in own)]
            groups = [own for own in groups if own not in near]
            groups.append([*chain(*near), row])
    unmeasured = [row for row in rows if not row.data]
    if len(groups) == 1:
        groups[0] += unmeasured
    elif unmeasured:
        groups.append(unmeasured)
    made = [_part(label, own, by) for label, own in zip(_labels(groups), groups, strict=True)]
    return sorted(made, key=lambda part: (not part.label, part.label))


def split_identical_rows(found: Sequence[TablePart]) -> tuple[str | None, list[TablePart]]:
    """Return the name of a further column and the parts with it, if rows of a part have equal settings."""
    alike = [
        own
        for part in found
        for settings in {row.settings for row in part.rows}
        if len(own := [row for row in part.rows if row.settings == settings]) > 1
    ]
    if not alike:
        return None, list(found)
    by_recipe = all(len({row.recipe for row in own} - {None}) == len(own) for own in alike)

    def more(row: TableRow) -> TableRow:
        name = row.recipe if by_recipe else row.results[0].name
        return replace(row, settings=(*row.settings, name))

    extended = [part._replace(rows=[more(row) for row in part.rows]) for part in found]
    return "recipe" if by_recipe else "run", extended


def _part(label: str, rows: Sequence[TableRow], by: str | None) -> TablePart:
    tokenizers = _tokenizers(rows)
    metric = by or ("best_loss" if tokenizers == 1 else "bits_per_byte")
    if tokenizers > 1 and metric.endswith(PER_TOKEN):
        metric = ""

    def place(row: TableRow) -> tuple:
        values = row.values(metric) if row.is_done else []
        mean = fmean(values) if values else math.nan
        rank = (0, direction(metric) * mean) if math.isfinite(mean) else (1, 0.0)
        names = (row.status, *row.settings, row.recipe, row.results[0].name)
        return (*rank, *map(natural, names))

    ordered = sorted(rows, key=place)
    return TablePart(label, ordered, sum(place(row)[0] == 0 for row in rows), tokenizers, metric)


def _tokenizers(rows: Sequence[TableRow]) -> int:
    """Return the largest number of tokenizers on the same data: each split may train its own."""
    results = [each for row in rows for each in row.results]
    known = {
        (each.data, vocabulary)
        for each in results
        if (vocabulary := each.run.record.get("vocabulary"))
    }
    return max([1, *Counter(data for data, _ in known).values()])


def _labels(groups: Sequence[Sequence[TableRow]]) -> list[str]:
    """Return a label for the data of each group: the option, and the data settings in which groups differ.

    Adds the start of the fingerprint if two groups differ in their files only.
    """
    measured = [[each for row in rows for each in row.results if each.data] for rows in groups]
    keys = {key for own in measured for each in own for key in each.settings}
    of_data = [key for key in sorted(keys) if key == "task" or key.startswith("data.")]
    naming = [key for key in of_data if _distinguishes(key, [own for own in measured if own])]
    firsts = [min(own, key=lambda each: str(each.data), default=None) for own in measured]
    labels = ["" if first is None else _label(first, naming) for first in firsts]
    return [
        f"{label} {str(first.data).split()[-1][:6]}" if first and labels.count(label) > 1 else label
        for label, first in zip(labels, firsts, strict=True)
    ]


def _distinguishes(key: str, measured: Sequence[Sequence[Result]]) -> bool:
    """Return whether a setting has one value in each group, but not the same in all."""
    values = [{each.settings.get(key) for each in own} for own in measured]
    return all(len(own) == 1 for own in values) and len(set.union(*values)) > 1


def _label(result: Result, keys: Sequence[str]) -> str:
    name = result.settings.get("data", "data")
    return " ".join([name, *(f"{k}={result.settings[k]}" for k in keys if k in result.settings)])


def direction(metric: str) -> int:
    """Return 1 if lower values of a metric are better, -1 if higher values are."""
    return 1 if metric.endswith(LESS_IS_BETTER) else -1


def natural(text: object) -> tuple[int, float, str]:
    """Return a key that sorts numbers by value, then words, then unknown values."""
    if text is None:
        return 2, 0.0, ""
    try:
        return 0, float(str(text)), ""
    except ValueError:
        return 1, 0.0, str(text)
