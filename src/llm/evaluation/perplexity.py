"""Cross-entropy over a whole validation part, and the metrics derived from it."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from llm.losses import cross_entropy_sum


class Perplexity(Metric):
    """Mean cross-entropy in nats per token, perplexity, and bits per byte.

    Sums in float64 and exponentiates once at the end. (torchmetrics' own Perplexity exponentiates
    float32 probabilities: one confident miss in a thousand tokens makes it infinite.)

    Args:
        bytes_per_token: mean UTF-8 bytes of text per target token, which makes results of different tokenizers
            comparable. None leaves bits per byte out.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self, bytes_per_token: float | None = None) -> None:
        super().__init__()
        self.bytes_per_token = bytes_per_token
        # Apple's MPS has no float64; there each batch's sum is exact and their sum is float32.
        wide = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("nats", torch.zeros((), dtype=wide), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "B T V"], targets: Int[Tensor, "B T"]) -> None:
        """Add a batch; targets of -100 are ignored."""
        nats, tokens = cross_entropy_sum(logits, targets)
        self.nats += nats
        self.tokens += tokens

    def compute(self) -> dict[str, float]:
        """Return `loss`, `perplexity` and, if bytes are known, `bits_per_byte`; NaN before any token."""
        loss = (self.nats / self.tokens).item()
        return summarize_loss(loss, self.bytes_per_token)


def summarize_loss(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """Return the metrics derived from a mean loss in nats per token."""
    perplexity = math.exp(loss) if loss < 700 else math.inf
    results = {"loss": loss, "perplexity": perplexity}
    if bytes_per_token:
        results["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return results
