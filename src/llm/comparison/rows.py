"""Runs as rows: seeds of one recipe together, rows on the same data beside one another, the best first."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from llm.comparison.interval import MeanInterval, mean_interval
from llm.comparison.result import Result
from llm.runs import Run

# Figures of which less is better; of all others more is.
LESS_IS_BETTER = (
    "loss",
    "perplexity",
    "bits_per_byte",
    "seconds",
    "peak_gib",
    "kl",
    "parameters",
    "tokens",
)
# What is a mean over tokens, and so speaks of the tokenizer as much as of the model.
PER_TOKEN = ("loss", "perplexity")


@dataclass(frozen=True, eq=False)
class TableRow:
    """Repetitions of one recipe: runs that differ in their seed.

    Attributes:
        settings: what tells it from other rows, in the order of the columns; None where unknown.
        results: the repetitions, sorted by seed.
    """

    settings: tuple[str | None, ...]
    results: tuple[Result, ...]

    @property
    def counted(self) -> tuple[Result, ...]:
        """The repetitions that its figures are of: those that are done, or all while none is."""
        return tuple(each for each in self.results if each.status == "done") or self.results

    @property
    def is_done(self) -> bool:
        """Whether there is a whole run."""
        return self.counted[0].status == "done"

    @property
    def status(self) -> str:
        """Where its repetitions stand: one word where they agree."""
        counts = Counter(each.status for each in self.results)
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{counts[word]} {word}" for word in sorted(counts))

    @property
    def errors(self) -> str:
        """Why some failed."""
        return "; ".join(dict.fromkeys(each.error for each in self.results if each.error))

    @property
    def recipe(self) -> str | None:
        """The fingerprint that its repetitions share."""
        return next((each.recipe for each in self.results if each.recipe), None)

    @property
    def has_place(self) -> bool:
        """Whether its figures may be ranked: it is done, and its model did not see its targets."""
        return self.is_done and not any(each.sees_its_targets for each in self.results)

    @property
    def data(self) -> set[str]:
        """All that its repetitions were measured on."""
        return {each.data for each in self.results if each.data is not None}

    def values(self, figure: str) -> list[float]:
        """A figure of each counted repetition that has it."""
        return [each.figures[figure] for each in self.counted if figure in each.figures]

    def estimate(self, figure: str, confidence: float) -> MeanInterval | None:
        """The mean of a figure and its interval."""
        values = self.values(figure)
        return mean_interval(values, confidence) if values else None


class TablePart(NamedTuple):
    """Rows whose figures compare, because they were measured on the same data.

    Attributes:
        label: what the data are called; empty where nothing was measured.
        rows: the rows, the best first, then those that have no place.
        ranked: how many of them have a place.
        tokenizers: how many tokenizers, or other ways to count a loss, there are.
        figure: what they are ranked by; empty where nothing may rank them.
    """

    label: str
    rows: Sequence[TableRow]
    ranked: int
    tokenizers: int
    figure: str

    @property
    def best(self) -> Run | None:
        """The best run of the first row, if that has a place."""
        if not self.ranked:
            return None
        known = [each for each in self.rows[0].counted if self.figure in each.figures]
        choose = min if is_less_better(self.figure) else max
        return choose(known, key=lambda each: each.figures[self.figure]).run

    def rank(self, row: TableRow, confidence: float) -> int | None:
        """Return one more than the number of rows that are better beyond both intervals; None without a place.

        Rows whose intervals overlap may so share a rank: their seeds do not tell which is better.

        Args:
            row: One of the rows.
            confidence: Of the intervals.
        """
        ranked = self.rows[: self.ranked]
        if row not in ranked:
            return None
        sign = 1 if is_less_better(self.figure) else -1
        found = {each: each.estimate(self.figure, confidence) for each in ranked}
        ends = {
            each: (sign * known.mean - (known.margin or 0), sign * known.mean + (known.margin or 0))
            for each, known in found.items()
            if known is not None
        }
        return 1 + sum(highest < ends[row][0] for _, highest in ends.values())


def best_loss(run: Run) -> float | None:
    """The lowest validation loss of a run so far."""
    return Result(run).figures.get("best_loss")


# What differs


def differing_keys(results: Sequence[Result]) -> list[str]:
    """Keys that tell runs apart: those that somebody set, then choices that followed but tell more.

    A model brings options of its own; these are no news beside its name.
    """
    places: dict[str, int] = {}
    for result in results:
        for place, key in enumerate(result.overrides):
            places[key] = min(place, places.get(key, place))
    keys = sorted(places, key=lambda key: (places[key], key))
    shown = [key for key in keys if _differs(key, results)]
    for key in sorted({key for each in results for key in each.choices} - places.keys()):
        if _differs(key, results) and _tells_more(key, shown, results=results):
            shown.append(key)
    return shown


def _differs(key: str, results: Sequence[Result]) -> bool:
    """Whether there are two values; a choice that is not recorded may be any."""
    values = {each.settings.get(key) for each in results}
    is_choice = any(key in each.choices for each in results)
    return len(values - {None} if is_choice else values) > 1


def _tells_more(key: str, shown: Sequence[str], *, results: Sequence[Result]) -> bool:
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
    """Rows of repetitions.

    Two runs of one recipe and one seed repeat nothing: the second is a row of its own, and so is a run
    from before recipes were recorded. One that never began is of the recipe that its settings have elsewhere.

    Args:
        results: the runs.
        keys: what else they differ in.
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
        is_alone = each.has_begun and each.recipe is None
        seen[settings, recipe, each.seed] += 1
        again = seen[settings, recipe, each.seed]
        own = (each.run.path if is_alone else None, each.seed if by_seed else None)
        rows.setdefault((settings, recipe, again, own), []).append(each)
    return [TableRow(key[0], tuple(found)) for key, found in rows.items()]  # type: ignore


# What compares


def parts(rows: Sequence[TableRow], by: str | None, *, confidence: float) -> list[TablePart]:
    """Rows that compare, together; a row with several seeds joins what each of them was measured on.

    Args:
        rows: all rows.
        by: the figure to rank by; None takes the validation loss, or bits per byte where a loss per token
            would speak of the tokenizer.
        confidence: of the intervals.
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
    made = [
        _part(label, own, by=by, confidence=confidence)
        for label, own in zip(_labels(groups), groups, strict=True)
    ]
    return sorted(made, key=lambda part: (not part.label, part.label))


def split_identical_rows(found: Sequence[TablePart]) -> tuple[str | None, list[TablePart]]:
    """Parts with one more column in their rows, and its name, where settings leave some of a part alike."""
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

    told = [part._replace(rows=[more(row) for row in part.rows]) for part in found]
    return "recipe" if by_recipe else "run", told


def _part(label: str, rows: Sequence[TableRow], *, by: str | None, confidence: float) -> TablePart:
    tokenizers = _tokenizers(rows)
    figure = by or ("best_loss" if tokenizers == 1 else "bits_per_byte")
    sign = 1 if is_less_better(figure) else -1
    if tokenizers > 1 and is_per_token(figure):
        figure = ""

    def place(row: TableRow) -> tuple:
        found = row.estimate(figure, confidence) if row.has_place else None
        has_place = found is not None and math.isfinite(found.mean)
        rank = (0, sign * found.mean) if found and has_place else (1, 0.0)
        names = (row.status, *row.settings, row.recipe, row.results[0].name)
        return (*rank, *map(natural, names))

    ordered = sorted(rows, key=place)
    return TablePart(label, ordered, sum(place(row)[0] == 0 for row in rows), tokenizers, figure)


def _tokenizers(rows: Sequence[TableRow]) -> int:
    """The most ways to count a loss that one text was measured in: a tokenizer may be fitted to each split."""
    ways: dict[str | None, set[Any]] = {}
    for each in chain(*(row.results for row in rows)):
        ways.setdefault(each.data, set()).update({each.record.get("vocabulary")} - {None})
    return max(1, *(len(found) for found in ways.values()))


def _labels(groups: Sequence[Sequence[TableRow]]) -> list[str]:
    """What the data of each group are called: the option, and the settings of data in which groups differ.

    Where no setting tells two groups apart their files do, and the beginning of a fingerprint stands for these.
    """
    measured = [[each for row in rows for each in row.results if each.data] for rows in groups]
    keys = {key for own in measured for each in own for key in each.settings}
    of_data = [key for key in sorted(keys) if key == "task" or key.startswith("data.")]
    telling = [key for key in of_data if _tells(key, [own for own in measured if own])]
    labels = [_called(min(own, key=_data), telling) if own else "" for own in measured]
    counts = Counter(labels)
    return [
        f"{label} {_data(min(own, key=_data)).split()[-1][:6]}"
        if own and counts[label] > 1
        else label
        for label, own in zip(labels, measured, strict=True)
    ]


def _tells(key: str, measured: Sequence[Sequence[Result]]) -> bool:
    """Whether a setting has one value in each group, and not the same in all."""
    values = [{each.settings.get(key) for each in own} for own in measured]
    return all(len(own) == 1 for own in values) and len(set.union(*values)) > 1


def _called(result: Result, keys: Sequence[str]) -> str:
    name = result.settings.get("data", "data")
    return " ".join([name, *(f"{k}={result.settings[k]}" for k in keys if k in result.settings)])


def _data(result: Result) -> str:
    return str(result.data)


def is_less_better(figure: str) -> bool:
    """Whether the lower of two figures is the better one."""
    return figure.endswith(LESS_IS_BETTER)


def is_per_token(figure: str) -> bool:
    """Whether a figure speaks of the tokenizer as much as of the model."""
    return figure.endswith(PER_TOKEN)


def natural(text: object) -> tuple[int, float, str]:
    """A key that sorts numbers by value, then words, then what is unknown."""
    if text is None:
        return 2, 0.0, ""
    try:
        return 0, float(str(text)), ""
    except ValueError:
        return 1, 0.0, str(text)
