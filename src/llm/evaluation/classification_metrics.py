"""Metrics of classification."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)
from torchmetrics.utilities import dim_zero_cat

from llm.evaluation.running_mean import WIDE, Sums
from llm.nn.ignore_index import IGNORE_INDEX


def scores(num_classes: int) -> MetricCollection:
    """Return the metrics of predicted classes (B) against true ones (B), ignoring labels of -100.

    `accuracy` is the share of correct predictions, `balanced_accuracy` the mean recall of the classes,
    `f1_macro` their mean F1. With two classes `f1` is the F1 of the second, the positive class.
    """
    settings: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "validate_args": False}
    metrics: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", **settings),
        "balanced_accuracy": MulticlassAccuracy(num_classes, average="macro", **settings),
        "f1_macro": MulticlassF1Score(num_classes, average="macro", **settings),
    }
    if num_classes == 2:
        metrics["f1"] = BinaryF1Score(**settings)
    # torchmetrics groups metrics whose states are equal after the first batch, if only by chance.
    return MetricCollection(metrics, compute_groups=False)  # pyright: ignore[reportArgumentType]


def confusion(num_classes: int) -> MulticlassConfusionMatrix:
    """Return the counts (N, N) of texts by their class (row) and the predicted one (column)."""
    return MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)


def faults(counts: Int[Tensor, "N N"], classes: Sequence[str], *, is_weighted: bool) -> list[str]:
    """Return a warning if a classifier predicts one class for all texts or is not better than guessing.

    Guessing predicts the largest class for every text. A classifier is better if its accuracy or, if `is_weighted`, the
    mean recall of the classes is higher by more than one standard error.

    Args:
        counts: texts by their class (row) and the predicted one (column).
        classes: names of the classes.
        is_weighted: whether all classes have the same weight in the loss.
    """
    sizes, total = counts.sum(dim=1).double(), float(counts.sum())
    if not total:
        return []
    predicted = counts.sum(dim=0)
    if int(predicted.count_nonzero()) == 1:
        name = classes[int(predicted.argmax())]
        return [f"all {total:,.0f} texts are classified as {name}"]
    shares = counts.diagonal().double() / sizes.clamp(min=1)
    if is_weighted:
        found, guessed, what = shares[sizes > 0].mean(), 1 / (sizes > 0).sum(), "balanced accuracy"
    else:
        found, guessed, what = counts.diagonal().sum() / total, sizes.max() / total, "accuracy"
    error = (guessed * (1 - guessed) / total) ** 0.5
    if found > guessed + error:
        return []
    always = classes[int(sizes.argmax())]
    return [
        f"{what} {found:.1%}: always predicting {always} gives {guessed:.1%}, so nothing is learned that generalizes "
        "to other texts"
    ]


class WeightedLoss(Sums):
    """The weighted mean loss over texts, in nats."""

    def __init__(self) -> None:
        super().__init__(weights=WIDE)

    def update(self, nats: Float[Tensor, ""], weight: Float[Tensor, ""]) -> None:
        """Add a batch: the weighted sum of its losses and the sum of the weights."""
        self.sums += nats
        self.count += weight


class Probabilities(Metric):
    """The predicted class probabilities of each text, from all devices."""

    full_state_update = False
    rows: list[Tensor]
    probabilities: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("probabilities", [], dist_reduce_fx="cat")

    def update(
        self, rows: Int[Tensor, "B"], labels: Int[Tensor, "B"], *, logits: Float[Tensor, "B N"]
    ) -> None:
        """Add the texts of a batch: indices, labels (-100 leaves a text out) and logits."""
        mask = labels != IGNORE_INDEX
        self.rows.append(rows[mask])
        self.probabilities.append(logits[mask].float().softmax(dim=-1))

    def compute(self) -> tuple[Int[Tensor, "M"], Float[Tensor, "M N"]]:
        """Return the indices in ascending order, and the probabilities of each text."""
        rows = dim_zero_cat(self.rows)
        order = rows.argsort()
        return rows[order], dim_zero_cat(self.probabilities)[order]
