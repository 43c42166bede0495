"""Classification: which of some classes a text belongs to."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

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
from llm.tasks.base import Batch, Groups, Task


class Classification(Task):
    """Learn the classes of texts by cross-entropy, weighted by class where the data say so.

    The arguments are those of `Task`, with a classifier for a model.

    Attributes:
        confusion: the confusion matrix of the evaluation under way.
        probabilities: the answers of the evaluation under way.
        counts: the confusion matrix of the newest evaluation, (N, N).
    """

    data_module = LabelledDataModule
    command = "classify"
    class_weights: Tensor

    def __init__(
        self,
        model: Classifier,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[torch.nn.Module], Groups],
    ) -> None:
        super().__init__(model, optimizer, schedule, parameter_groups)
        # The data say it anew each time, so no checkpoint holds it.
        self.register_buffer("class_weights", torch.ones(model.num_classes), persistent=False)
        self.loss = WeightedLoss()
        self.scores = scores(model.num_classes)
        self.confusion = confusion(model.num_classes)
        self.probabilities = Probabilities()
        self.counts: Tensor | None = None

    def check(self, data: DataModule) -> None:
        """Refuse data with another number of classes than the model has.

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
        """Mean cross-entropy of a batch's `labels` (B), in nats, each weighted by its class."""
        nats = self._nats(self._logits(batch), batch["labels"])
        return nats / self.weight(batch).clamp(min=1)

    def weight(self, batch: Batch) -> Tensor:
        """The sum of the weights of a batch's labels, none of which is below 1."""
        labels = batch["labels"]
        return (self.class_weights[labels.clamp(min=0)] * (labels != IGNORE_INDEX)).sum()

    def evaluate(self, batch: Batch) -> None:
        """Add a batch to the sums, and its answers to the answers."""
        logits, labels = self._logits(batch), batch["labels"]
        predicted = logits.argmax(dim=-1)
        self.loss.update(self._nats(logits, labels), self.weight(batch))
        self.scores.update(predicted, labels)
        self.confusion.update(predicted, labels)
        self.probabilities.update(batch["rows"], labels, logits)

    def results(self) -> dict[str, float]:
        """`loss`, and the figures of `llm.evaluation.classification_metrics.scores`."""
        results = {"loss": self.loss.compute(), **self.scores.compute()}
        self.counts = self.confusion.compute().cpu()
        for metric in (self.loss, self.scores, self.confusion, self.probabilities):
            metric.reset()
        return {name: value.item() for name, value in results.items()}

    def warnings(self) -> list[str]:
        """What the newest evaluation shows to be wrong with the classifier."""
        data: LabelledDataModule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if self.counts is None:
            return []
        return faults(self.counts, data.classes, is_weighted=data.class_weights is not None)

    def _logits(self, batch: Batch) -> Tensor:
        return self.model(batch["tokens"], batch["attention_mask"])

    def _nats(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = self.class_weights.to(logits.dtype)
        return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE_INDEX, reduction="sum")
