"""The choice of experts for each token (Shazeer et al. 2017), and what keeps their loads balanced."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
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
    probabilities = _at_least_float32(logits).softmax(dim=-1)
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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Balancing:
    """What keeps the loads of the experts balanced: coefficients of losses and a rate; 0 leaves a part out.

    Attributes:
        load_balancing: coefficient of `load_balancing_loss`; 0.01 in its paper.
        router_z: coefficient of the mean of log(Σ exp(logit))² over the tokens, which keeps the logits small, because
            the softmax amplifies the rounding errors of large ones (Zoph et al. 2022, equation 5); 0.001 in the paper.
        bias_rate: change of an expert's bias at each optimizer step, which is added to its probabilities for the
            choice (Wang et al. 2024, algorithm 1). It adds no gradient to that of the task.

    Raises:
        ValueError: a number is negative.
    """

    load_balancing: float = 0.0
    router_z: float = 0.0
    bias_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name}={value}: is negative; use 0 to leave it out, or more")


class RoutingSums(NamedTuple):
    """Sums over the tokens of a layer.

    Attributes:
        counts: tokens that chose each expert, (E).
        probabilities: probabilities of each expert, (E).
        z: squared logarithms of the sums of exponentials of the logits.
        entropy: entropies of the probabilities, in nats.
        tokens: number of tokens.
    """

    counts: Tensor
    probabilities: Tensor
    z: Tensor
    entropy: Tensor
    tokens: Tensor

    @property
    def packed(self) -> Float[Tensor, "numbers"]:
        """All sums in one vector; vectors of several batches or ranks can be added."""
        return torch.cat([each.reshape(-1) for each in self])

    @classmethod
    def unpacked(cls, packed: Float[Tensor, "numbers"]) -> "RoutingSums":
        """Return the sums in a vector."""
        num_experts = (len(packed) - 3) // 2
        counts, probabilities, others = packed.split([num_experts, num_experts, 3])
        return cls(counts, probabilities, *others)


def routing_sums(routing: Routing, real: Bool[Tensor, "*B"] | None = None) -> RoutingSums:
    """Return the sums of a batch.

    Args:
        routing: the experts of N tokens.
        real: True for real tokens; padding is left out.
    """
    logits, chosen = _at_least_float32(routing.logits), routing.experts
    if real is None:
        real = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
    weights = real.flatten().to(logits.dtype)  # not an index: no shape depends on the data
    log_sums = logits.logsumexp(dim=-1)
    log_probabilities = logits - log_sums.unsqueeze(-1)
    probabilities = log_probabilities.exp()  # (N, E)
    entropies = -(probabilities * log_probabilities).sum(dim=-1)
    counts = torch.zeros_like(probabilities[0]).scatter_add(
        0, chosen.flatten(), weights.repeat_interleave(chosen.shape[1])
    )
    # Sums of products: autocast would compute a matrix product in bfloat16.
    return RoutingSums(
        counts.detach(),
        (weights.unsqueeze(-1) * probabilities).sum(dim=0),  # (N, E) -> (E)
        (weights * log_sums.square()).sum(),
        (weights * entropies).sum(),
        weights.sum(),
    )


def load_balancing_loss(
    fractions: Float[Tensor, "E"], probabilities: Float[Tensor, "E"]
) -> Float[Tensor, ""]:
    """Return E · Σ fraction · probability over the experts (Fedus et al. 2021, equation 4).

    It is smallest for equal loads, and then k. A fraction counts choices and has no gradient. The gradient reaches the
    router through the probabilities, and is larger for experts that many tokens chose.

    Args:
        fractions: share of the tokens that chose each expert.
        probabilities: mean probability of each expert.
    """
    return len(fractions) * (fractions * probabilities).sum()
