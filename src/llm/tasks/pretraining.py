"""Pretraining: next-token prediction (Bengio et al. 2003)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from llm.data.corpora.text import TextDataModule
from llm.evaluation.perplexity import Perplexity
from llm.losses import cross_entropy
from llm.models.gpt import GPT
from llm.tasks.base import CAUSAL, Batch, Task
from llm.tasks.carried_state import CarriedStates


class Pretraining(Task):
    """Learn to predict each token from those before it.

    The arguments are those of `Task`; the model maps tokens (B, T) to logits (B, T, V). If a batch has `continues`, as
    those of `data/order=contiguous` have, the recurrent state of the rows is carried from batch to batch.
    """

    data_module = TextDataModule
    requires = CAUSAL

    def __init__(self, model: nn.Module, **shared: Any) -> None:
        super().__init__(model, **shared)
        self.perplexity = Perplexity()
        self.trained_states, self.evaluated_states = CarriedStates(), CarriedStates()

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
        if "cache" not in batch:
            return self.model(batch["tokens"])
        return self.model(batch["tokens"], cache=batch["cache"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch, see `Task`."""
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        with self._carrying(self.trained_states, batch, micro_batch) as batch:
            return super().training_step(batch, batch_idx)

    def evaluate(self, batch: Batch) -> None:
        """Add a batch to the sums."""
        with self._carrying(self.evaluated_states, batch) as batch:
            self.perplexity.update(self.logits(batch), batch["targets"])

    @contextmanager
    def _carrying(
        self, states: CarriedStates, batch: Batch, micro_batch: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Give a batch with a cache that continues the states, if the rows of the batch continue others."""
        if "continues" not in batch:
            yield batch
            return
        with states.window(cast(GPT, self.model), batch["continues"], micro_batch) as cache:
            yield batch | {"cache": cache}

    def results(self) -> dict[str, float]:
        """Return loss, perplexity and, if the bytes per token are known, bits per byte."""
        results = self.perplexity.compute()
        self.perplexity.reset()
        return results

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the carried states, unless the checkpoint has weights only."""
        super().on_save_checkpoint(checkpoint)
        if self.trained_states.states and "optimizer_states" in checkpoint:
            checkpoint["carried_states"] = self.trained_states.gathered()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the carried states, on any number of devices."""
        super().on_load_checkpoint(checkpoint)
        if "carried_states" in checkpoint:
            shares = self.trainer.distributed_sampler_kwargs or {}
            self.trained_states.restore(
                checkpoint["carried_states"],
                rank=shares.get("rank", 0),
                ranks=self.data_parallel,
                micro_batches=self.trainer.accumulate_grad_batches,
            )
