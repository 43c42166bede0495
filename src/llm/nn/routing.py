"""The choice of experts for each token (Shazeer et al. 2017), and what keeps their loads balanced."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Routing(NamedTuple):
    """The experts of N tokens.

    Attributes:
        logits: scores of all experts, (N, E).
        experts: the k chosen experts of each token, best first, (N, k).
        weights: weights of their outputs, (N, k).
    """

    logits: Tensor
    experts: Tensor
    weights: Tensor


def route(
    logits: Float[Tensor, "N E"],
    *,
    top_k: int,
    normalize: bool,
    bias: Float[Tensor, "E"] | None = None,
) -> Routing:
    """Choose the `top_k` experts of each token with the highest probabilities.

    Args:
        logits: scores of the experts.
        top_k: number k of experts of a token.
        normalize: whether the weights of the chosen experts are divided by their sum, as in Mixtral. This equals a
            softmax over the chosen logits.
        bias: added to the probabilities for the choice, but not to the weights (Wang et al. 2024, equation 3).
    """
    # In float32 or higher: in bfloat16 the probabilities of many experts would be equal.
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    ranked = probabilities if bias is None else probabilities + bias
    # The choice itself has no gradient; the router learns through the weights.
    experts = ranked.topk(top_k, dim=-1).indices
    weights = probabilities.gather(-1, experts)  # (N, E) -> (N, k)
    if normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routing(logits, experts, weights)


def expert_counts(experts: Int[Tensor, "N k"], num_experts: int) -> Int[Tensor, "E"]:
    """Return how many tokens chose each expert."""
    zeros = torch.zeros(num_experts, dtype=torch.int64, device=experts.device)
    # Not bincount: the shape of its result depends on the data, which compiled code does not know.
    return zeros.scatter_add(0, experts.flatten(), torch.ones_like(experts.flatten()))
