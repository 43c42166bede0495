"""Learning to answer: the next token, where an assistant writes it (Ouyang et al. 2022, InstructGPT)."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import Optimizer

from llm.data.instruction import InstructionDataModule
from llm.evaluation.perplexity import Perplexity
from llm.losses import cross_entropy
from llm.nn.targets import IGNORED
from llm.tasks.task import Batch, Groups, Task

# What a batch may hold beside tokens and targets, each an argument of the model's.
CONTEXT = ("positions", "documents", "attention")


class Instruction(Task):
    """Learn to predict the tokens that are asked for, each from those before it.

    The arguments are those of `Task`; the model maps tokens (B, T) to logits (B, T, V).
    """

    data_module = InstructionDataModule
    verb = "chat"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Groups], Optimizer],
        schedule: Callable[[int, int], float],
        parameter_groups: Callable[[nn.Module], Groups],
    ) -> None:
        super().__init__(model, optimizer, schedule, parameter_groups)
        self.perplexity = Perplexity()

    def step(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the targets of a batch that are asked for, in nats."""
        return cross_entropy(self.logits(batch), batch["targets"])

    def weight(self, batch: Batch) -> Tensor:
        """How many targets are asked for."""
        return (batch["targets"] != IGNORED).sum()

    def logits(self, batch: Batch) -> Tensor:
        """The scores of each next token, (B, T, V)."""
        return self.model(
            batch["tokens"], **{name: batch[name] for name in CONTEXT if name in batch}
        )

    def evaluate(self, batch: Batch) -> None:
        """Add a batch to the sums."""
        self.perplexity.update(self.logits(batch), batch["targets"])

    def results(self) -> dict[str, float]:
        """Loss and perplexity of what is asked for: of the reference answers, unless all tokens are learnt."""
        results = self.perplexity.compute()
        self.perplexity.reset()
        return results
