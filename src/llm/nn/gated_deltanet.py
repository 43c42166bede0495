"""Gated DeltaNet, a layer whose memory is one matrix per head (Yang et al. 2024), as in Qwen3-Next."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.nn.gated_delta_rule import chunked_gated_delta_rule, recurrent_gated_delta_rule
from llm.nn.heads import group_size, head_width
from llm.nn.memory_mixer import MemoryMixer
from llm.nn.norms import RMSNorm
from llm.nn.recurrence import require_recurrence
from llm.nn.recurrent_mixer import RecurrentState
from llm.nn.short_convolution import ShortConvolution


class GatedDeltaNet(MemoryMixer):
    """The gated delta rule with H heads, between a short convolution and a gated norm.

    Queries, keys and values pass a convolution and SiLU. Queries and keys are scaled to length 1, so that a full update
    (β = 1) replaces what is stored under a key exactly. Decay and β of each token are functions of the token.

    Args:
        dim: width C of the model.
        num_heads: number H of value heads, each with a state of its own.
        num_key_heads: number K of query and key heads, a divisor of H; None means H.
        head_dim: width D of a query and of a key; None means `dim / num_heads`.
        value_head_dim: width V of a value; None means D.
        kernel_size: tokens that the convolution reads.
        eps: added to the mean square in the norm of the output.
        dropout: probability for the output.
        recurrence: the function that computes the rule: `recurrent_gated_delta_rule` or an equivalent.

    Raises:
        ValueError: `num_heads` does not divide `dim`, `num_key_heads` does not divide `num_heads`,
            or `recurrence` computes another layer.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_key_heads: int | None = None,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        kernel_size: int = 4,
        eps: float = 1e-6,
        dropout: float = 0.0,
        recurrence: Callable[..., tuple[Tensor, Tensor]] = chunked_gated_delta_rule,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_key_heads = num_heads if num_key_heads is None else num_key_heads
        group_size(self.num_heads, self.num_key_heads, name="num_key_heads")
        self.head_dim = head_width(dim, num_heads, head_dim=head_dim)
        self.value_head_dim = value_head_dim or self.head_dim
        require_recurrence(recurrence, definition=recurrent_gated_delta_rule)
        self.recurrence = recurrence
        self.dropout = nn.Dropout(dropout)

        keys, values = self.num_key_heads * self.head_dim, num_heads * self.value_head_dim
        # One matrix for three projections, as in attention. Its rows: K query heads, K key heads, H value heads.
        self.query_key_value = nn.Linear(dim, 2 * keys + values, bias=False)
        self.convolution = ShortConvolution(2 * keys + values, kernel_size)
        self.beta = nn.Linear(dim, num_heads, bias=False)
        self.decay = nn.Linear(dim, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self.gate = nn.Linear(dim, values, bias=False)
        self.norm = RMSNorm(self.value_head_dim, eps=eps)
        self.output = nn.Linear(values, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw decays from very slow to very fast, as Mamba-2 and Qwen3-Next do: A from U(0.01, 16)."""
        nn.init.uniform_(self.A_log, 0.01, 16.0)
        with torch.no_grad():
            self.A_log.log_()
        nn.init.ones_(self.dt_bias)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """H heads, D rows and V columns."""
        return self.num_heads, self.head_dim, self.value_head_dim

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        *,
        cache: RecurrentState | None = None,
        attention_mask: Bool[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Return the output projection of what the heads read from their memories."""
        state = self.new_state(x.shape[0]) if cache is None else cache
        # (B, T, C) -> (B, T, 2KD + HV)
        mixed, history = self._convolved(
            self.query_key_value(x),
            state=state,
            attention_mask=attention_mask,
            document_ids=document_ids,
        )
        log_decay, beta = self._decay_and_beta(x, attention_mask)
        heads, memory = self._recur(
            *self._heads(mixed),
            log_decay=log_decay,
            beta=beta,
            memory=state.parts["memory"],
            document_ids=document_ids,
        )
        if cache is not None:
            cache.advance(x.shape[1], history=history, memory=memory)
        # Each head is normalized, since the scale of a memory depends on its decay, and gated by the token.
        gate = self.gate(x).unflatten(-1, (-1, self.value_head_dim))
        heads = self.norm(heads.to(gate.dtype)) * F.silu(gate)
        # (B, T, H, V) -> (B, T, H · V) -> (B, T, C)
        return self.dropout(self.output(heads.flatten(2)))

    def mixing_flops(self, keys: int) -> int:
        """Return the operations of training for one token: 18 for each entry of the memories.

        Correction, update and reading are a product each, of a multiplication and an addition; the backward pass takes
        twice as many. The number of keys does not matter.
        """
        return 18 * self.num_heads * self.head_dim * self.value_head_dim

    def _heads(self, mixed: Float[Tensor, "B T channels"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys (B, T, H, D) and values (B, T, H, V)."""
        keys = self.num_key_heads * self.head_dim
        query, key, value = mixed.split((keys, keys, mixed.shape[-1] - 2 * keys), dim=-1)
        value = value.unflatten(-1, (-1, self.value_head_dim))
        group = self.num_heads // self.num_key_heads
        query, key = (
            # (B, T, K · D) -> (B, T, K, D) -> (B, T, H, D), each key head repeated for its group
            unit_length(part.unflatten(-1, (-1, self.head_dim))).repeat_interleave(group, dim=2)
            for part in (query, key)
        )
        # As in attention: a dot product of D terms is scaled down by √D.
        return query * self.head_dim**-0.5, key, value

    def _decay_and_beta(
        self, x: Float[Tensor, "B T C"], attention_mask: Bool[Tensor, "B T"] | None
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """Return the logarithm of the decay, -A · softplus(decay(x) + dt_bias), and β = sigmoid(beta(x))."""
        log_decay = -self.A_log.exp() * F.softplus(self.decay(x) + self.dt_bias)
        beta = self.beta(x).sigmoid()
        if attention_mask is None:
            return log_decay, beta
        real = attention_mask[..., None]  # padding decays nothing and writes nothing
        return log_decay * real, beta * real


def unit_length(x: Float[Tensor, "*B D"], eps: float = 1e-6) -> Float[Tensor, "*B D"]:
    """Divide each row by its Euclidean length; eps prevents a division by 0."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + eps)
