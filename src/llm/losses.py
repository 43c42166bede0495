"""The loss of a language model: cross-entropy of the next token, in nats."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# A target that asks for nothing: padding, a prompt, a token that is not masked.
IGNORED = -100


def cross_entropy(logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"]) -> Float[Tensor, ""]:
    """The mean of -log softmax(logits)[target] over the targets that are not ignored.

    Args:
        logits: one row of scores a token; half-precision ones are raised to float32 first,
            for the sum of 50,000 exponentials does not fit in eight bits.
        targets: the right ids, -100 where nothing is asked.

    Returns:
        The loss in nats a token; 0, with a zero gradient, where every target is ignored.
    """
    losses, asked = _token_losses(logits, targets)
    return losses.sum() / asked.sum().clamp(min=1)


def cross_entropy_sum(
    logits: Float[Tensor, "*N V"], targets: Int[Tensor, "*N"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """The parts of a mean over many batches: add both up, divide once.

    Args:
        logits: one row of scores a token.
        targets: the right ids, -100 where nothing is asked.

    Returns:
        The sum of the losses in nats, in float64, which a million tokens do not wear out, and
        the number of targets that are not ignored. Both stay on the device of the logits, but
        on Apple's, which knows no float64: there the sum is on the CPU.
    """
    losses, asked = _token_losses(logits, targets)
    if losses.device.type == "mps":
        losses = losses.cpu()
    return losses.sum(dtype=torch.float64), asked.sum()


def _token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each token, 0 where ignored, and where it is not ignored; both flat."""
    targets = targets.flatten()
    logits = logits.reshape(len(targets), logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return losses, targets != IGNORED
