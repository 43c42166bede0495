"""Pretraining: next-token prediction (Bengio et al. 2003)."""

from typing import Any

from torch import Tensor, nn

from llm.data.corpora.text import TextDataModule
from llm.evaluation.perplexity import Perplexity
from llm.losses import cross_entropy
from llm.tasks.base import CAUSAL, Batch, Task


class Pretraining(Task):
    """Learn to predict each token from those before it.

    The arguments are those of `Task`; the model maps tokens (B, T) to logits (B, T, V).
    """

    data_module = TextDataModule
    requires = CAUSAL

    def __init__(self, model: nn.Module, **shared: Any) -> None:
        super().__init__(model, **shared)
        self.perplexity = Perplexity()

    def setup(self, stage: str) -> None:
        """Take the bytes per token of the data, for a metric that is comparable across tokenizers."""
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.perplexity.bytes_per_token = getattr(data, "val_bytes_per_token", None)

    def step(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch of `tokens` and `targets` (B, T), in nats."""
        # targets[:, t] is the token after tokens[:, t]. The causal mask hides it from position t, so one
        # pass trains on T predictions per row.
        return cross_entropy(self.logits(batch), batch["targets"])

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of each next token, (B, T, V)."""
        return self.model(batch["tokens"])

    def evaluate(self, batch: Batch) -> None:
        """Add a batch to the sums."""
        self.perplexity.update(self.logits(batch), batch["targets"])

    def results(self) -> dict[str, float]:
        """Return loss, perplexity and, if the bytes per token are known, bits per byte."""
        results = self.perplexity.compute()
        self.perplexity.reset()
        return results
