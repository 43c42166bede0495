"""`metrics.csv`: every metric by step, in a file that survives crashes and resumes."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

from llm.comparison.result import read_metric_rows
from llm.files import open_for_appending, replacing


class CSVLogger(Logger):
    """A CSV file with a row per step and a column per metric.

    Lightning's own logger deletes the file when a run resumes and rewrites it as it grows. This one appends, and a
    resumed run removes only the rows after its checkpoint.

    Args:
        path: the file.
        resume_step: keep rows up to this step; -1 starts a new file.
    """

    name = "csv"  # pyright: ignore
    version = ""  # pyright: ignore

    def __init__(self, path: Path, resume_step: int = -1) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns = ["step"]
        self._row: dict[str, Any] = {}  # of the newest step
        self._is_new = False  # whether the row has values that the file does not have
        self._start: int | None = None  # offset of the row in the file
        self._file: TextIO | None = None
        self._begin(resume_step)

    @rank_zero_only
    def _begin(self, resume_step: int) -> None:
        rows = read_metric_rows(self.path) if self.path.exists() and resume_step >= 0 else []
        kept = [row for row in rows if int(row["step"]) <= resume_step]
        if kept:
            self.columns = list(kept[0])
        self._rewrite(kept)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collect a step's metrics, which the next step or `save` writes."""
        if self._row and self._row["step"] != step:
            self.save()
            self._row, self._start = {}, None
        self._row |= {"step": step, **metrics}
        self._is_new = True

    @rank_zero_only
    def save(self) -> None:
        """Write the current row, replacing an earlier version of it."""
        if not self._is_new or self._file is None:
            return
        if self._start is not None:
            os.truncate(self.path, self._start)
        new = [name for name in self._row if name not in self.columns]
        if new:
            rows = read_metric_rows(self.path)
            self.columns += new
            self._rewrite(rows)
        self._start = self.path.stat().st_size
        row = (self._row.get(name, "") for name in self.columns)
        csv.writer(self._file).writerow(row)  # one whole line, because the file is line-buffered
        self._is_new = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the current row and close the file."""
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because config.yaml has them."""

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        if self._file is not None:
            self._file.close()
        self._file = open_for_appending(self.path)
