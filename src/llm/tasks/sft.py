"""Supervised finetuning: predict the tokens of an assistant's responses (Ouyang et al. 2022, InstructGPT)."""

from torch import Tensor

from llm.data.examples.instruction import InstructionDataModule
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tasks.base import Batch
from llm.tasks.pretraining import Pretraining

# Optional tensors of a batch, each an argument of the model.
CONTEXT = ("positions", "document_ids", "attention_mask")


class SFT(Pretraining):
    """The objective of pretraining, on the tokens in the target mask only.

    The arguments are those of `Pretraining`. Batches are weighted by their number of targets.
    """

    data_module = InstructionDataModule
    command = "chat"

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of targets that are not ignored."""
        return (batch["targets"] != IGNORE_INDEX).sum()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logits of each next token, (B, T, V)."""
        # Packed rows have positions and document ids, so that no example attends to another.
        context = {name: batch[name] for name in CONTEXT if name in batch}
        return self.model(batch["tokens"], **context)
