"""Classification of texts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.data.base import DataModule
from llm.data.examples.labelled import LabelledDataModule
from llm.evaluation.classification_metrics import (
    Probabilities,
    WeightedLoss,
    confusion,
    faults,
    scores,
)
from llm.models.classifier import Classifier
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tasks.base import Batch, Task


class Classification(Task):
    """Learn the classes of texts by cross-entropy, weighted by class if the data have weights.

    The arguments are those of `Task`; the model is a classifier.

    Attributes:
        confusion: the confusion matrix of the current evaluation.
        probabilities: the predictions of the current evaluation.
        counts: the confusion matrix of the newest evaluation, (N, N).
    """

    data_module = LabelledDataModule
    command = "classify"
    class_weights: Tensor

    def __init__(self, model: Classifier, **shared: Any) -> None:
        super().__init__(model, **shared)
        # Computed from the data at every start, so checkpoints leave it out.
        self.register_buffer("class_weights", torch.ones(model.num_classes), persistent=False)
        self.loss = WeightedLoss()
        self.scores = scores(model.num_classes)
        self.confusion = confusion(model.num_classes)
        self.probabilities = Probabilities()
        self.counts: Tensor | None = None

    def check(self, data: DataModule) -> None:
        """Check that data and model have the same number of classes.

        Raises:
            ValueError: they differ.
        """
        assert isinstance(data, LabelledDataModule)
        if data.num_classes != len(self.class_weights):
            raise ValueError(
                f"num_classes={len(self.class_weights)}: the data have {data.num_classes} classes "
                f"({', '.join(data.classes)}); leave task.model.num_classes out"
            )

    def setup(self, stage: str) -> None:
        """Take the weights of the classes from the data."""
        data: LabelledDataModule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if data.class_weights is not None:
            self.class_weights = torch.tensor(data.class_weights, device=self.device)

    def step(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of `labels` (B), in nats, weighted by class."""
        nats = self._nats(self._logits(batch), batch["labels"])
        # A weighted mean: divided by the sum of the weights, not by the number of texts.
        return nats / self.weight(batch).clamp(min=1)

    def weight(self, batch: Batch) -> Tensor:
        """Return the sum of the weights of a batch's labels; no weight is below 1."""
        labels = batch["labels"]
        # clamp: the ignored label -100 is not an index; its weight is multiplied by 0.
        return (self.class_weights[labels.clamp(min=0)] * (labels != IGNORE_INDEX)).sum()

    def evaluate(self, batch: Batch) -> None:
        """Add a batch to the sums, and its predictions to `probabilities`."""
        logits, labels = self._logits(batch), batch["labels"]
        predicted = logits.argmax(dim=-1)
        self.loss.update(self._nats(logits, labels), self.weight(batch))
        self.scores.update(predicted, labels)
        self.confusion.update(predicted, labels)
        self.probabilities.update(batch["rows"], labels, logits=logits)

    def results(self) -> dict[str, float]:
        """Return `loss` and the metrics of `llm.evaluation.classification_metrics.scores`."""
        results = {"loss": self.loss.compute(), **self.scores.compute()}
        self.counts = self.confusion.compute().cpu()
        for metric in (self.loss, self.scores, self.confusion, self.probabilities):
            metric.reset()
        return {name: value.item() for name, value in results.items()}

    def warnings(self) -> list[str]:
        """Return the faults of the classifier in the newest evaluation."""
        data: LabelledDataModule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if self.counts is None:
            return []
        advice = "try another optimizer.lr, more steps or more texts"
        if not self.is_pretrained:
            advice += ", or begin with pretrained weights (experiment=classify weights=run weights.path=…)"
        is_weighted = data.class_weights is not None
        found = faults(self.counts, data.classes, is_weighted=is_weighted)
        return [f"{fault}; {advice}" for fault in found]

    def _logits(self, batch: Batch) -> Tensor:
        return self.model(batch["tokens"], batch["attention_mask"])

    def _nats(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Raised to float32 as in `llm.losses.cross_entropy`.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = self.class_weights.to(logits.dtype)
        return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE_INDEX, reduction="sum")
