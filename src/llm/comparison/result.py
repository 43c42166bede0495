"""The results of one run, read from its `run.json` and `metrics.csv`."""

import csv
import io
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from llm.config.reading import RESTORE, FileError, read_utf8
from llm.runs import Run, display_path, known_choices, recorded_words

Curve = list[tuple[float, float, float]]

# Keys in which repetitions of one experiment may differ.
UNSHOWN = (
    *("seed", "name", "output_dir", "rerun", "resume", "dry_run", "match", "trust", "logger"),
    *("callbacks", "hydra"),
)


@dataclass(frozen=True, eq=False)
class Result:
    """The results of a run, which may not have started; unknown values are None or missing."""

    run: Run

    @property
    def name(self) -> str:
        """Return the name of the directory."""
        return self.run.path.name

    @cached_property
    def status(self) -> str:
        """Return the status of the run; a new one is pending."""
        state = self.run.state
        return "pending" if state == "new" else state

    @property
    def error(self) -> str | None:
        """Return why the run failed, in one line; None if it did not."""
        error = self.run.record.get("error") if self.status == "failed" else None
        return " ".join(str(error).split()) if error else None

    @property
    def seed(self) -> Any:
        """Return the recorded or requested seed."""
        return self.run.record.get("seed", self.overrides.get("seed"))

    @property
    def recipe(self) -> str | None:
        """Return the fingerprint that its repetitions share; None before training starts."""
        return self.run.record.get("recipe") if "fingerprint" in self.run.record else None

    @property
    def changes(self) -> list[str]:
        """Return a line for each setting that was changed during training."""
        return [
            f"{key} {change} from step {each.get('from_step')} on"
            for each in self.run.record.get("segments") or ()
            if isinstance(each, Mapping) and isinstance(each.get("changes"), Mapping)
            for key, change in each["changes"].items()
        ]

    @property
    def data(self) -> str | None:
        """Return the task and held-out data of its metrics; None if nothing was measured."""
        corpus = self.run.record.get("corpus")
        return f"{self.run.record.get('task')} {corpus}" if corpus else None

    # Configuration

    @cached_property
    def overrides(self) -> dict[str, str]:
        """Return the overrides of its command line by key, in their order."""
        return self._override_values("overrides")

    @property
    def adopted(self) -> dict[str, str]:
        """Return the overrides of the run whose architecture it has, if it began from one."""
        return self._override_values("adopted")

    def _override_values(self, name: str) -> dict[str, str]:
        found = recorded_words(self.run.record, name)
        return {key.lstrip("+~"): value.strip("\"'") for key, value in found.items()}

    @cached_property
    def choices(self) -> dict[str, str]:
        """Return the option of each group, those of the model, its size and its tokenizer as far as known."""
        return known_choices(self.run.record)

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the choices and overrides that may distinguish it from other runs."""
        found = {**self.adopted, **self.overrides, **self.choices}
        return {key: value for key, value in found.items() if _is_shown(key)}

    # Metrics

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """Return the numbers of `metrics.csv` by step; empty if the file is missing or damaged.

        Step 0 is left out: finetuning validates before its first step.
        """
        return [row for row in self._file[0] if row["step"] > 0]

    @property
    def damage(self) -> str | None:
        """Return why its metrics are unreadable; None if they are readable."""
        return self._file[1]

    @cached_property
    def _file(self) -> tuple[list[dict[str, float]], str | None]:
        try:
            return read_metrics(self.run.metrics), None
        except (OSError, FileError) as error:
            reason = str(error).removeprefix(f"{self.run.metrics}: ")
            return [], f"{display_path(self.run.metrics)} is damaged and left out: {reason}"

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Return all metrics that a table may show, by name."""
        recorded = numbers(self.run.record.get("metrics"))
        # Metrics of the best weights on the whole validation part, if the validations in training used a subset.
        whole = {
            f"val/{name.removeprefix('whole/')}": value
            for name, value in recorded.items()
            if name.startswith("whole/")
        }
        at_best = self._at_best(recorded) | whole
        losses = self._column("val/loss")
        final_loss = losses[-1] if losses else recorded.get("val/loss")
        found: dict[str, float | None] = {
            **{name: value for name, value in recorded.items() if name.startswith("test/")},
            **{name: value for name, value in at_best.items() if name.startswith("val/")},
            **{name: self.number(name) for name in ("parameters", "trained_parameters", "seconds")},
            "tokens": self.tokens_at(self.last_step) if self.last_step else None,
            "final_loss": None if whole else final_loss,
            "best_loss": at_best.get("val/loss"),
            "bits_per_byte": at_best.get("val/bits_per_byte"),
            # Medians, because the first steps are slow.
            "tokens_per_second": _median(self._column("speed/tokens_per_second")),
            "mfu": _median(self._column("speed/mfu")),
            "peak_gib": self._peak(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def number(self, name: str) -> float | None:
        """Return a number in the record; None if there is none."""
        return numbers(self.run.record).get(name)

    def _column(self, metric: str) -> list[float]:
        return [row[metric] for row in self.rows if metric in row]

    def curve(self, metric: str) -> Curve:
        """Return a metric over time: step, training tokens so far and value of each point."""
        return [
            (row["step"], self.tokens_at(row["step"]), row[metric])
            for row in self.rows
            if math.isfinite(row.get(metric, math.nan))
        ]

    @cached_property
    def last_step(self) -> float:
        """Return the last step with a known result."""
        stopped = (
            self.number("stopped_at") or self.number("steps") if self.status == "done" else None
        )
        return stopped or max(self._column("step"), default=0.0)

    def tokens_at(self, step: float) -> float:
        """Return the training tokens up to a step, by linear interpolation between the counts."""
        steps, tokens = self._counted
        if len(steps) == 1:
            return step * (self.number("tokens_per_step") or 0.0)
        at = min(bisect_right(steps, step), len(steps) - 1)
        rate = (tokens[at] - tokens[at - 1]) / (steps[at] - steps[at - 1])
        return tokens[at - 1] + rate * (step - steps[at - 1])

    @cached_property
    def _counted(self) -> tuple[list[float], list[float]]:
        """Return the steps at which tokens were counted, and the counts."""
        known = {row["step"]: row["tokens"] for row in self.rows if "tokens" in row}
        return [0.0, *sorted(known)], [0.0, *(known[step] for step in sorted(known))]

    def _at_best(self, otherwise: dict[str, float]) -> dict[str, float]:
        """Return the metrics of the validation whose weights were kept, otherwise of the one with the lowest loss."""
        measured = [row for row in self.rows if math.isfinite(row.get("val/loss", math.nan))]
        kept = [row for row in measured if row["step"] == self.run.record.get("best_step")]
        if kept:
            return kept[-1]
        return min(measured, key=lambda row: row["val/loss"]) if measured else otherwise

    def _peak(self) -> float | None:
        recorded = self.number("peak_memory")
        logged = max(self._column("memory/peak_gib"), default=None)
        return logged if recorded is None else recorded / 2**30


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _is_shown(key: str) -> bool:
    """Return whether runs that differ in this key are different experiments."""
    return key.replace("/", ".").split(".")[0] not in UNSHOWN


def numbers(values: Any) -> dict[str, float]:
    """Return the numbers in a record."""
    if not isinstance(values, Mapping):
        return {}
    return {
        name: number
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if (number := as_number(value)) is not None
    }


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the numbers of a metrics file, row by row; none if the file does not exist.

    Raises:
        FileError: the file is damaged.
    """
    return [
        {name: value for name, text in row.items() if (value := as_number(text)) is not None}
        for row in (read_metric_rows(path) if path.exists() else ())
    ]


def read_metric_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics file as text, without a last line cut short by a crash.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file is not a table by step.
    """
    lines = io.StringIO(read_utf8(path), newline="")
    try:
        rows = [row for row in csv.DictReader(complete_lines(lines)) if None not in row.values()]
    except csv.Error as error:
        raise _damaged(path, str(error)) from None
    for row in rows:
        if None in row:  # a crash only shortens lines
            raise _damaged(path, "a line has more fields than the header")
        if not re.fullmatch(r"\d{1,18}", row.get("step", "")):
            raise _damaged(path, f"step is {row.get('step')!r:.60}, not a whole number")
    return rows


def _damaged(path: Path, what: str) -> FileError:
    return FileError(f"{path}: {what}; {RESTORE}, or delete it")


def complete_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that end with a line feed; in a line cut short, 3.14 could be read as 3.1."""
    return (line for line in lines if line.endswith("\n"))


def as_number(text: Any) -> float | None:
    """Return a text as a number, or None."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return None
