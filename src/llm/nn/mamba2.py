"""Mamba-2, a state space layer whose decay depends on the token (Dao and Gu 2024)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.nn.heads import group_size, head_width
from llm.nn.memory_mixer import MemoryMixer
from llm.nn.norms import RMSNorm
from llm.nn.recurrence import require_recurrence
from llm.nn.recurrent_mixer import RecurrentState
from llm.nn.short_convolution import ShortConvolution
from llm.nn.state_space_duality import chunked_state_space, recurrent_state_space


class Mamba2(MemoryMixer):
    """A state space recurrence with H heads, between a short convolution and a gated norm.

    The continuous system h' = A h + b x is observed in steps of Δ_t, which the token chooses. A step decays the state
    by a_t = exp(A · Δ_t) and adds Δ_t · b_t x_tᵀ. A large step forgets the past and writes the token, a small one
    keeps the past and skips the token.

    Args:
        dim: width C of the model.
        num_heads: number H of heads.
        expand: width of all heads together, relative to the width of the model.
        state_dim: number N of numbers that the state keeps for each channel.
        num_groups: number G of pairs of b and c, a divisor of H; heads of a group share them, as in grouped-query
            attention.
        kernel_size: tokens that the convolution reads.
        bias: whether the projections have biases.
        min_step: least step Δ at initialization.
        max_step: largest step Δ at initialization.
        eps: added to the mean square in the norm of the output.
        dropout: probability for the output.
        recurrence: the function that computes the heads: `recurrent_state_space` or an equivalent.

    Raises:
        ValueError: `num_heads` does not divide the width of the heads, `num_groups` does not divide
            `num_heads`, or `recurrence` computes another layer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        expand: int = 2,
        state_dim: int = 128,
        num_groups: int = 1,
        kernel_size: int = 4,
        bias: bool = False,
        min_step: float = 0.001,
        max_step: float = 0.1,
        eps: float = 1e-5,
        dropout: float = 0.0,
        recurrence: Callable[..., tuple[Tensor, Tensor]] = chunked_state_space,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_groups, self.state_dim = num_heads, num_groups, state_dim
        group_size(num_heads, num_groups, name="num_groups")
        width = expand * dim
        self.head_dim = head_width(width, num_heads)
        self.steps = (min_step, max_step)
        require_recurrence(recurrence, definition=recurrent_state_space)
        self.recurrence = recurrence
        self.dropout = nn.Dropout(dropout)

        mixed = width + 2 * num_groups * state_dim  # x, b and c
        # One matrix for three projections. Its rows: the gate, then x, b and c, then the step of each head.
        self.input = nn.Linear(dim, width + mixed + num_heads, bias=bias)
        self.convolution = ShortConvolution(mixed, kernel_size, bias=True)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.D = nn.Parameter(torch.empty(num_heads))
        self.norm = RMSNorm(width, eps=eps)
        self.output = nn.Linear(width, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set A to -1 … -H and D to 1, and draw steps whose logarithm is uniform."""
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.num_heads + 1, device=self.A_log.device).log())
            shortest, longest = map(math.log, self.steps)
            nn.init.uniform_(self.dt_bias, shortest, longest)
            step = self.dt_bias.exp().clamp(min=1e-4)
            # The inverse of softplus, which turns the bias into a step.
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))
        nn.init.ones_(self.D)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """H heads, N rows and P columns."""
        return self.num_heads, self.state_dim, self.head_dim

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        cache: RecurrentState | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output projection of what the heads read from their states."""
        state = self.new_state(x.shape[0]) if cache is None else cache
        memory = state.parts["memory"]
        width = self.num_heads * self.head_dim
        shared = self.num_groups * self.state_dim
        gate, mixed, step = self.input(x).split((width, width + 2 * shared, self.num_heads), dim=-1)
        mixed, history = self._convolved(
            mixed, state=state, attention_mask=attention_mask, document_ids=document_ids
        )
        inputs, b, c = mixed.split((width, shared, shared), dim=-1)
        inputs = inputs.unflatten(-1, (self.num_heads, self.head_dim))  # (B, T, H, P)
        # (B, T, G · N) -> (B, T, G, N) -> (B, T, H, N)
        b, c = (
            part.unflatten(-1, (self.num_groups, self.state_dim)).repeat_interleave(
                self.num_heads // self.num_groups, dim=2
            )
            for part in (b, c)
        )
        step = F.softplus(step.to(memory.dtype) + self.dt_bias)  # (B, T, H)
        if attention_mask is not None:
            # In a step of 0 nothing decays and nothing is written.
            step = step * attention_mask[..., None]
        heads, memory = self._recur(
            inputs * step[..., None],
            log_decay=-self.A_log.exp() * step,
            b=b,
            c=c,
            memory=memory,
            document_ids=document_ids,
        )
        if cache is not None:
            cache.advance(x.shape[1], history=history, memory=memory)
        # A connection around the state, one number per head: (B, T, H, P) * (H, 1)
        heads = (heads + inputs * self.D[:, None]).flatten(2).to(gate.dtype)
        return self.dropout(self.output(self.norm(heads * F.silu(gate))))

    def mixing_flops(self, keys: int) -> int:
        """Return the operations of training for one token: 12 for each entry of the states.

        Update and reading are a product each, of a multiplication and an addition; the backward pass takes twice as
        many. The number of keys does not matter.
        """
        return 12 * self.num_heads * self.head_dim * self.state_dim
