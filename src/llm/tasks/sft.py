"""Learning to answer: the next token, where an assistant writes it (Ouyang et al. 2022, InstructGPT)."""

from torch import Tensor

from llm.data.examples.instruction import InstructionDataModule
from llm.nn.ignore_index import IGNORE_INDEX
from llm.tasks.base import Batch
from llm.tasks.pretraining import Pretraining

# What a batch may hold beside tokens and targets, each an argument of the model's.
CONTEXT = ("positions", "document_ids", "attention_mask")


class SFT(Pretraining):
    """Pretraining's objective on the tokens that are asked for, each predicted from those before it.

    The arguments are those of `Task`; the model maps tokens (B, T) to logits (B, T, V). Batches ask for
    unlike numbers of tokens, by which they weigh; figures are of what is asked for.
    """

    data_module = InstructionDataModule
    command = "chat"

    def weight(self, batch: Batch) -> Tensor:
        """How many targets are asked for."""
        return (batch["targets"] != IGNORE_INDEX).sum()

    def logits(self, batch: Batch) -> Tensor:
        """The scores of each next token, (B, T, V)."""
        context = {name: batch[name] for name in CONTEXT if name in batch}
        return self.model(batch["tokens"], **context)
