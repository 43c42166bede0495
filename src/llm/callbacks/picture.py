"""The loss picture of a run."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from llm.runs import Run


class Picture(Callback):
    """Draw `loss.png` from `metrics.csv` when training ends, however it ends."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw after a whole run."""
        self._draw(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Draw what there is of an interrupted run."""
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        run = Run(Path(trainer.default_root_dir))
        if trainer.is_global_zero and run.metrics.is_file():
            draw(run.metrics, run.picture, title=run.path.name)


def draw(metrics: Path, picture: Path, title: str) -> None:
    """Draw training and validation loss against steps as a PNG.

    Args:
        metrics: a CSV file with columns `step`, `train/loss` and `val/loss`.
        picture: where to write.
        title: above the axes.
    """
    from matplotlib.figure import (
        Figure,
    )  # half a second to import: only when there is something to draw

    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    # Blue and orange of Okabe and Ito's palette, told apart by colour-blind readers too.
    _plot(axes, rows, "train/loss", color="#0072B2", alpha=0.8, linewidth=1, label="training")
    _plot(axes, rows, "val/loss", color="#D55E00", marker="o", markersize=4, label="validation")
    axes.set(xlabel="optimizer steps", ylabel="cross-entropy (nats a token)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(picture)


def _plot(axes: Any, rows: list[dict[str, str]], column: str, **style: Any) -> None:
    points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
