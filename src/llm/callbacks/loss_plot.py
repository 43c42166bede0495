"""The picture of a run: metrics against steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from llm.comparison.result import read_metrics
from llm.files import replacing
from llm.runs import Run

LOSS = {"loss": "cross-entropy (nats per token)"}
# Blue and orange of Okabe and Ito's palette, which colour-blind readers can tell apart.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"label": "training", "color": "#0072B2", "alpha": 0.8, "linewidth": 1},
    "val": {"label": "validation", "color": "#D55E00", "marker": "o", "markersize": 4},
}


class Picture(Callback):
    """The picture `loss.png`, drawn from `metrics.csv` when training ends, even by an error.

    Args:
        panels: labels of axes by metric, without `train/` and `val/`; None draws the loss.
    """

    def __init__(self, panels: Mapping[str, str] | None = None) -> None:
        self.panels = LOSS if panels is None else panels

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw a finished run, also if it was killed after its last step and is resumed only to end."""
        self._draw(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Draw the steps so far of an interrupted run."""
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        run = Run(Path(trainer.default_root_dir))
        if trainer.is_global_zero and run.metrics.is_file():
            draw_metrics(run.metrics, run.picture, title=run.path.name, panels=self.panels)


def draw_metrics(
    metrics: Path, picture: Path, *, title: str, panels: Mapping[str, str] = LOSS
) -> None:
    """Draw metrics of training and validation against steps as a PNG.

    Args:
        metrics: a CSV file with columns `step`, and `train/…` and `val/…` for each panel.
        picture: the file to write.
        title: title above the axes.
        panels: see `Picture`.
    """
    from matplotlib.figure import Figure  # here, because it takes half a second to import

    rows = read_metrics(metrics)
    height = 4.2 if len(panels) == 1 else 2.6 * len(panels)
    figure = Figure(figsize=(7, height), dpi=120, layout="constrained")
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False).flatten()
    for axes, (name, label) in zip(all_axes, panels.items(), strict=True):
        for part, style in STYLES.items():
            column = f"{part}/{name}"
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                axes.plot(*zip(*points, strict=True), **style)
        axes.set(ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend(frameon=False)
    all_axes[0].set(title=title)
    all_axes[-1].set(xlabel="optimizer steps")
    with replacing(picture) as partial:
        figure.savefig(partial, format="png")
