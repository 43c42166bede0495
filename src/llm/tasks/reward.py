"""A reward model: scores that agree with people's preferences (Ouyang et al. 2022, InstructGPT)."""

from torch import Tensor

from llm.tasks.base import Batch
from llm.tasks.pairs import Pairs


class Reward(Pairs):
    """Score the chosen response of a pair above the rejected one.

    The arguments are those of `Pairs`; the model is a classifier with one class. Its logit at the last token
    of the response, before the token that ends it, is the score. Only differences of scores have a meaning,
    because the loss depends on nothing else.
    """

    command = "evaluate"

    def rewards(self, batch: Batch) -> Tensor:
        """Return the score of each row, (2B)."""
        # (2B, 1) -> (2B)
        return self.model(batch["tokens"], batch["attention_mask"]).squeeze(-1)
