"""How a model knows the order of its tokens: five answers with one interface.

A model calls three hooks and a kind of position answers those it needs: `embed` adds something
to the embeddings, `rotation` turns queries and keys, `bias` is added to the attention scores.

Positions are given as whatever can pick rows of a table: a slice where all rows of a batch stand
at start, start + 1, … (the common case: no index is built, nothing is gathered), or a tensor of
(T) or (B, T). Everything but `Learned` is computed from the position itself, once a forward, so
there is no table to run past, to store, or to lose precision with the model's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm.nn.heads import head_width

Positions = slice | Int[Tensor, "*rows T"]
Scaling = Callable[[Tensor], Tensor]  # from frequencies in radians a position to slower ones
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (1, T, D/2) or (B, 1, T, D/2)


class Position(nn.Module):
    """Knows nothing of order; the kinds below override the hook they need."""

    def embed(self, x: Float[Tensor, "B T C"], positions: Positions) -> Float[Tensor, "B T C"]:
        """Token embeddings `x`, with what they should know of their positions."""
        return x

    def rotation(self, x: Float[Tensor, "B T C"], positions: Positions) -> Rotation | None:
        """Cosines and sines for `rotate`; `x` says on which device and how precise."""
        return None

    def bias(
        self,
        x: Float[Tensor, "B T C"],
        query_positions: Positions,
        key_positions: slice | Int[Tensor, "*rows S"],
    ) -> Float[Tensor, "*rows H T S"] | None:
        """What is added to the attention scores of each head, as precise as `x`."""
        return None


class NoPosition(Position):
    """No position at all: a causal mask alone tells a model of order (Kazemnejad et al. 2023)."""


class Learned(Position):
    """A learned vector for each position, added to the embeddings (GPT-2).

    Args:
        context_length: number of positions there are vectors for.
        dim: width C of the model.
    """

    def __init__(self, context_length: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context_length, dim)

    def embed(self, x: Float[Tensor, "B T C"], positions: Positions) -> Float[Tensor, "B T C"]:
        """Adds the positions' vectors.

        Raises:
            ValueError: there are more positions than vectors.
        """
        last = positions.stop if isinstance(positions, slice) else positions.shape[-1]
        if last > self.embedding.num_embeddings:
            raise ValueError(
                f"{last} positions are more than context_length={self.embedding.num_embeddings}: "
                "a learned position has no vector past it; shorten the text or choose a model "
                "with rotary, alibi or sinusoidal positions"
            )
        index = as_index(positions, x.device).clamp(min=0)  # padding may stand before the first
        return x + self.embedding(index)


class Sinusoidal(Position):
    """Fixed sines and cosines of many wavelengths, added to the embeddings (Vaswani et al. 2017).

    Args:
        dim: width C of the model, even.
        theta: the longest wavelength over 2π.
    """

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.dim = _even("dim", dim)
        self.theta = theta

    def embed(self, x: Float[Tensor, "B T C"], positions: Positions) -> Float[Tensor, "B T C"]:
        """Adds sin(angle) in the even columns and cos(angle) in the odd ones."""
        angle = angles(x, positions, self.dim, self.theta)
        waves = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
        return x + waves.to(x.dtype)


class Rotary(Position):
    """Queries and keys turned by angles that grow with position (Su et al. 2021, RoFormer).

    The score of a query and a key then depends on how far apart they stand. Column j of a head is
    paired with column j + D/2, as in Llama.

    Args:
        dim: width C of the model.
        num_heads: number of query heads.
        head_dim: width D of a head, even; None means `dim / num_heads`, as in `Attention`.
        theta: the longest wavelength over 2π; larger for longer contexts.
        scaling: slows the rotation for contexts longer than the model was pretrained with.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        theta: float = 10000.0,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = _even("head_dim", head_width(dim, num_heads, head_dim))
        self.theta = theta
        self.scaling = scaling

    def rotation(self, x: Float[Tensor, "B T C"], positions: Positions) -> Rotation:
        """Cosines and sines of the positions' angles, each (…, 1, T, D/2), alike for all heads."""
        angle = angles(x, positions, self.head_dim, self.theta, self.scaling).unsqueeze(-3)
        return angle.cos(), angle.sin()


@dataclass(frozen=True)
class Llama3Scaling:
    """Long waves slowed by a factor, short ones left, those between in proportion (Llama 3.1).

    A wave is long where it turns fewer than `low_freq_factor` times in the context of pretraining, short
    where it turns more than `high_freq_factor` times. Source: Grattafiori et al. 2024, "The Llama 3 herd
    of models", section 3.4.2, and the code released with Llama 3.1.

    Args:
        factor: how many times slower the long waves turn.
        low_freq_factor: turns in the context of pretraining below which a wave is long.
        high_freq_factor: turns above which it is short.
        context_length: tokens in the context of pretraining.

    Raises:
        ValueError: the factor is below 1, or the bounds are not in order.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    context_length: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor={self.factor}: give 1 or more")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} and high_freq_factor={self.high_freq_factor}: "
                "give two positive numbers, the lower first"
            )

    def __call__(self, frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
        """The slower frequencies, in radians a position."""
        turns = self.context_length * frequencies / (2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        kept = ((turns - self.low_freq_factor) / width).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


class ALiBi(Position):
    """Scores lowered in proportion to distance, each head at its own rate (Press et al. 2022).

    Args:
        num_heads: number H of query heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def bias(
        self,
        x: Float[Tensor, "B T C"],
        query_positions: Positions,
        key_positions: slice | Int[Tensor, "*rows S"],
    ) -> Float[Tensor, "*rows H T S"]:
        """Minus a slope for each head times the distance back to the key."""
        queries, keys = (as_index(p, x.device) for p in (query_positions, key_positions))
        distance = queries[..., :, None] - keys[..., None, :]
        slopes = self.slopes(x.device).to(x.dtype)
        return -slopes[:, None, None] * distance.unsqueeze(-3)

    def slopes(self, device: torch.device | None = None) -> Float[Tensor, "H"]:
        """2^(-8h/H) for h = 1 … H, where H is a power of two.

        For other counts: the slopes of the power of two below, then every second one of the
        power above, as the paper's authors do.
        """
        below = 2 ** (self.num_heads.bit_length() - 1)
        steps = torch.arange(1, below + 1, device=device) / below
        between = (torch.arange(self.num_heads - below, device=device) + 0.5) / below
        return 2.0 ** (-8 * torch.cat((steps, between)))


def as_index(positions: Positions, device: torch.device) -> Int[Tensor, "*rows T"]:
    """The positions as numbers, whichever way they were given."""
    if isinstance(positions, slice):
        return torch.arange(positions.start, positions.stop, device=device)
    return positions


def angles(
    x: Tensor, positions: Positions, dim: int, theta: float, scaling: Scaling | None = None
) -> Float[Tensor, "*rows T half_dim"]:
    """The angle position · theta^(-2j/dim), j = 0 … dim/2 - 1; where `x` is, at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=dtype, device=x.device) / dim)
    if scaling is not None:
        frequencies = scaling(frequencies)
    return as_index(positions, x.device).to(dtype)[..., None] * frequencies


def rotate(x: Float[Tensor, "B heads T D"], rotation: Rotation) -> Float[Tensor, "B heads T D"]:
    """Turns each pair of columns (j, j + D/2) of `x` by its angle.

    Args:
        x: queries or keys.
        rotation: cosines and sines, from `Rotary.rotation`.
    """
    cos, sin = (part.to(x.dtype) for part in rotation)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def _even(name: str, width: int) -> int:
    if width % 2:
        raise ValueError(f"{name}={width} is odd: sines and cosines come in pairs, choose an even")
    return width
