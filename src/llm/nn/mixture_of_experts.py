"""Mixtures of experts: a feed-forward layer of many experts, of which each token uses a few.

`naive_experts` is the definition; `grouped_experts` computes the same with one product for all experts.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from llm.nn.activations import silu
from llm.nn.context import Context
from llm.nn.feed_forward import Activation
from llm.nn.routing import Balancing, Routing, expert_counts, route
from llm.nn.stacked_linear import StackedLinear


class GatedExperts(nn.Module):
    """E layers such as `GatedFeedForward`, as stacks of their matrices.

    Args:
        num_experts: number E of experts.
        dim: width C of the model.
        hidden_dim: width F of the hidden layer of an expert.
        activation: the nonlinearity of the gate.
        bias: whether the projections have biases.
    """

    def __init__(
        self, num_experts: int, dim: int, hidden_dim: int, *, activation: Activation, bias: bool
    ) -> None:
        super().__init__()
        self.gate = StackedLinear(num_experts, dim, hidden_dim, bias=bias)
        self.input = StackedLinear(num_experts, dim, hidden_dim, bias=bias)
        self.activation = activation
        self.output = StackedLinear(num_experts, hidden_dim, dim, bias=bias)

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self.output.weight)


Kernel = Callable[[Tensor, Routing, GatedExperts], Tensor]


def naive_experts(
    x: Float[Tensor, "N C"], routing: Routing, experts: GatedExperts
) -> Float[Tensor, "N C"]:
    """Return Σ weight · expert(x) over the chosen experts of each token, one expert after the other."""
    y = torch.zeros_like(x)
    for index in range(len(experts)):
        # The tokens that chose this expert, and which of their choices it is.
        tokens, choices = (routing.experts == index).nonzero(as_tuple=True)
        own = x[tokens]  # (N, C) -> (n, C)
        hidden = experts.activation(experts.gate.one(index, own)) * experts.input.one(index, own)
        weights = routing.weights[tokens, choices].unsqueeze(-1)  # (n, 1)
        y = y.index_add(0, tokens, (weights * experts.output.one(index, hidden)).to(y.dtype))
    return y


def grouped_experts(
    x: Float[Tensor, "N C"], routing: Routing, experts: GatedExperts
) -> Float[Tensor, "N C"]:
    """Compute the same as `naive_experts` with the tokens sorted by expert, so that each stack is one product.

    No token is dropped: an expert computes as many as chose it.
    """
    # A token that chose k experts becomes k rows. (N, k) -> (N · k) -> the rows in the order of their experts.
    order = routing.experts.flatten().argsort(stable=True)
    ends = expert_counts(routing.experts, len(experts)).cumsum(0)
    rows = x.index_select(0, order // routing.experts.shape[1])  # (N, C) -> (N · k, C)
    hidden = experts.activation(experts.gate(rows, ends)) * experts.input(rows, ends)
    outputs = experts.output(hidden, ends)
    # Back in the order of the tokens, (N · k, C) -> (N, k, C), and summed over the k experts of each.
    outputs = outputs.index_select(0, order.argsort()).unflatten(0, routing.experts.shape)
    return (routing.weights.unsqueeze(-1) * outputs).sum(dim=1).to(x.dtype)


class MixtureOfExperts(nn.Module):
    """A router and E experts; the output of a token is the weighted sum of those of its k experts.

    Args:
        dim: width C of the model.
        num_experts: number E of experts.
        top_k: number k of experts of each token.
        hidden_dim: width of the hidden layer of an expert; None means 8/3 · dim / k, rounded up to `multiple_of`, so
            that a token is computed by as many parameters as in a `GatedFeedForward`.
        multiple_of: matrix products are faster for multiples of 32 or 64.
        activation: the nonlinearity of the gates.
        normalize: whether the weights of the chosen experts sum to 1.
        shared: makes a layer for a width that computes every token and is added to the experts (Dai et al. 2024,
            DeepSeekMoE); None leaves it out.
        bias: whether the projections have biases, also that of the router.
        dropout: probability for the output.
        kernel: the function that computes the experts: `naive_experts` or an equivalent.
        balancing: what keeps the loads of the experts balanced; None leaves them as they are.

    Attributes:
        selection_bias: added to the probabilities for the choice, (E); None without `balancing.bias_rate`.
        records: routing and mask of each forward pass with gradients since the list was set; None records nothing.

    Raises:
        ValueError: there are no experts, or a token cannot choose `top_k` of them.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_experts: int = 8,
        top_k: int = 2,
        hidden_dim: int | None = None,
        multiple_of: int = 32,
        activation: Activation = silu,
        normalize: bool = True,
        shared: Callable[[int], nn.Module] | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        kernel: Kernel = grouped_experts,
        balancing: Balancing | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts={num_experts}: give 1 or more")
        if not 1 <= top_k <= num_experts:
            raise ValueError(
                f"top_k={top_k}: a token cannot choose so many of num_experts={num_experts}; give 1 to {num_experts}"
            )
        hidden_dim = hidden_dim or math.ceil(8 * dim / 3 / top_k / multiple_of) * multiple_of
        self.top_k = top_k
        self.normalize = normalize
        self.router = nn.Linear(dim, num_experts, bias=bias)
        self.experts = GatedExperts(num_experts, dim, hidden_dim, activation=activation, bias=bias)
        self.shared = shared(dim) if shared is not None else None
        self.kernel = kernel
        self.dropout = nn.Dropout(dropout)
        self.balancing = balancing or Balancing()
        self.selection_bias: Tensor | None
        bias_of_choice = torch.zeros(num_experts) if self.balancing.bias_rate else None
        self.register_buffer("selection_bias", bias_of_choice)
        self.records: list[tuple[Routing, Tensor | None]] | None = None

    @property
    def idle_parameters(self) -> int:
        """Number of parameters of experts that a token does not choose."""
        count = sum(parameter.numel() for parameter in self.experts.parameters())
        return count - count * self.top_k // len(self.experts)

    def reset_parameters(self) -> None:
        """Set the bias of the choice to 0."""
        if self.selection_bias is not None:
            nn.init.zeros_(self.selection_bias)

    def prepare(self, context: Context) -> dict[str, Any]:
        """Return the arguments of `forward` besides the states."""
        return {"attention_mask": context.attention_mask}

    def forward(
        self,
        x: Float[Tensor, "*B C"],
        *,
        attention_mask: Bool[Tensor, "*B"] | None = None,
    ) -> Float[Tensor, "*B C"]:
        """Return the layer's output for each position of `x`.

        Args:
            x: the states.
            attention_mask: True for real tokens; only the record depends on it.
        """
        tokens = x.flatten(0, -2)  # (…, C) -> (N, C): a token is routed by itself
        routing = route(
            self.router(tokens),
            top_k=self.top_k,
            normalize=self.normalize,
            bias=self.selection_bias,
        )
        if self.records is not None and torch.is_grad_enabled():
            self.records.append((routing, attention_mask))
        y = self.kernel(tokens, routing, self.experts).view_as(x)
        if self.shared is not None:
            y = y + self.shared(x)
        return self.dropout(y)

    @torch.no_grad()
    def update_bias(self, counts: Float[Tensor, "E"]) -> None:
        """Raise the bias of experts with less than the mean load, and lower that of the others.

        Args:
            counts: tokens of an optimizer step that chose each expert.
        """
        if self.selection_bias is not None:
            direction = torch.sign(counts.mean() - counts)
            self.selection_bias += self.balancing.bias_rate * direction.to(
                self.selection_bias.dtype
            )
