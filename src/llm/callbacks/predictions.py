"""A classifier's predictions on the test part, and their confusion matrix."""

import csv
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from jaxtyping import Int
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from llm.data.base import DataModule
from llm.files import replacing
from llm.tasks.base import Task
from llm.tasks.classification import Classification


class Predictions(Callback):
    """Writer of `predictions.csv`, `confusion.csv` and `confusion.png` in the run directory after a test."""

    def suits(self, task: Task, data: DataModule) -> bool:
        """Return whether the task is a classification."""
        return isinstance(task, Classification)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files on the first device, before the task resets the metrics, which all devices gather."""
        assert isinstance(pl_module, Classification)
        if pl_module.tested != "test":
            return
        rows, probabilities = pl_module.probabilities.compute()
        counts = pl_module.confusion.compute()
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(trainer.default_root_dir)
        examples = [data.raw["test"][at] for at in rows.tolist()]
        predictions = [
            (each.where, each.text, each.label, data.classes[row.argmax()], *row.tolist())
            for each, row in zip(examples, probabilities.cpu(), strict=True)
        ]
        header = ["row", "text", "label", "predicted", *(f"p({name})" for name in data.classes)]
        write_predictions(folder / "predictions.csv", header, rows=predictions)
        table = [[name, *row] for name, row in zip(data.classes, counts.tolist(), strict=True)]
        write_predictions(folder / "confusion.csv", ["label", *data.classes], rows=table)
        draw_confusion(
            counts.cpu(), data.classes, picture=folder / "confusion.png", title="test part"
        )


def write_predictions(
    file: Path, header: Sequence[str], *, rows: Sequence[Sequence[object]]
) -> None:
    """Write a table as CSV."""
    with replacing(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


def draw_confusion(
    counts: Int[Tensor, "N N"], classes: Sequence[str], *, picture: Path, title: str
) -> None:
    """Draw a confusion matrix as a PNG.

    Args:
        counts: texts by their class (row) and the predicted one (column).
        classes: names of the classes.
        picture: the file to write.
        title: title above the matrix.
    """
    from matplotlib.figure import Figure  # here, because it takes half a second to import

    side = 2.5 + 0.6 * len(classes)
    figure = Figure(figsize=(side + 0.5, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in [(r, c) for r in range(len(classes)) for c in range(len(classes))]:
        color = "white" if shares[row, column] > 0.5 else "black"
        count = f"{int(counts[row, column]):,}"
        axes.text(column, row, count, ha="center", va="center", color=color)
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="label", title=title)
    with replacing(picture) as partial:
        figure.savefig(partial, format="png")
