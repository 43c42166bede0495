"""Cross-entropy over a whole validation part, and the metrics derived from it."""

import math

from jaxtyping import Float, Int
from torch import Tensor

from llm.evaluation.running_mean import Sums
from llm.losses import cross_entropy_sum


class Perplexity(Sums):
    """Mean cross-entropy in nats per token, perplexity, and bits per byte.

    Sums in float64 and exponentiates the mean. (torchmetrics' Perplexity computes probabilities in float32: one
    confident miss in a thousand tokens makes it infinite.)

    Args:
        bytes_per_token: mean UTF-8 bytes per target token, for bits per byte, which are comparable between
            tokenizers. None leaves them out.
    """

    def __init__(self, bytes_per_token: float | None = None) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token

    def update(self, logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> None:
        """Add a batch, ignoring targets of -100."""
        nats, tokens = cross_entropy_sum(logits, targets)
        self.sums += nats
        self.count += tokens

    def compute(self) -> dict[str, float]:
        """Return `loss`, `perplexity` and, if bytes are known, `bits_per_byte`; NaN before any token."""
        loss = super().compute().item()
        results = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
        if self.bytes_per_token:
            results["bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        return results
