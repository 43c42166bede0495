"""Metrics of classification: loss, accuracy, the confusion matrix and the probabilities of each text."""

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
    """Return the metrics of predicted classes (B) against true ones (B); labels of -100 are ignored.

    `accuracy` is the share of correct predictions, `balanced_accuracy` the mean recall of the classes,
    `f1_macro` the mean F1 of the classes. With two classes `f1` is the F1 of the second, the positive class.
    """
    settings: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "validate_args": False}
    metrics: dict[str, Metric] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", **settings),
        "balanced_accuracy": MulticlassAccuracy(num_classes, average="macro", **settings),
        "f1_macro": MulticlassF1Score(num_classes, average="macro", **settings),
    }
    if num_classes == 2:
        metrics["f1"] = BinaryF1Score(**settings)
    # torchmetrics groups metrics whose states are equal after the first batch, which may be a coincidence.
    return MetricCollection(metrics, compute_groups=False)  # pyright: ignore[reportArgumentType]


def confusion(num_classes: int) -> MulticlassConfusionMatrix:
    """Return the counts (N, N) of texts by their class (row) and the predicted one (column)."""
    return MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)


def faults(counts: Int[Tensor, "N N"], classes: Sequence[str], *, is_weighted: bool) -> list[str]:
    """Return a warning if a classifier gives one answer to all texts or is no better than guessing.

    The baseline always answers the largest class; if classes are weighted equally in the loss, accuracies are
    the means of the classes' recalls. A difference within one standard error does not count.

    Args:
        counts: texts by their class (row) and the predicted one (column).
        classes: names of the classes.
        is_weighted: whether classes of any size are weighted equally in the loss.
    """
    sizes, total = counts.sum(dim=1).double(), float(counts.sum())
    if not total:
        return []
    answered = counts.sum(dim=0)
    if int(answered.count_nonzero()) == 1:
        name = classes[int(answered.argmax())]
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
        f"{what} {found:.1%}: always answering {always} gives {guessed:.1%}, so nothing is learned that generalizes "
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

    def compute(self) -> Tensor:
        """Return the mean; NaN before any text."""
        return self.mean


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
        """Add a batch: the indices of the texts, their labels (texts with -100 are left out) and logits."""
        mask = labels != IGNORE_INDEX
        self.rows.append(rows[mask])
        self.probabilities.append(logits[mask].float().softmax(dim=-1))

    def compute(self) -> tuple[Int[Tensor, "M"], Float[Tensor, "M N"]]:
        """Return the indices in ascending order, and the class probabilities of each text."""
        rows = dim_zero_cat(self.rows)
        order = rows.argsort()
        return rows[order], dim_zero_cat(self.probabilities)[order]
