"""Position encodings: five kinds with one interface.

A model calls three hooks: `embed` adds to the embeddings, `rotation` rotates queries and keys, `bias` is
added to the attention scores.

Positions are a slice if all rows of a batch have the positions start, start + 1, …, and otherwise a tensor
of (T) or (B, T). All kinds but `Learned` compute their numbers once per forward pass. A table of them would
limit the length of a text, take memory, and have the low precision of the model.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm.nn.heads import head_width
from llm.nn.kv_cache import Cache

# Configurations of earlier runs name Llama3Scaling in this module.
from llm.nn.rotary_scaling import Llama3Scaling as Llama3Scaling
from llm.nn.rotary_scaling import RotaryScaling

Positions = slice | Int[Tensor, "*rows T"]
Rotation = tuple[
    Tensor, Tensor
]  # cosines and sines, each (1, T, R/2) or (B, 1, T, R/2); R columns rotate


class Position(nn.Module):
    """The base class, which adds nothing; a subclass overrides the hooks that it needs."""

    def embed(self, x: Float[Tensor, "B T C"], positions: Positions) -> Float[Tensor, "B T C"]:
        """Return the token embeddings `x` with position information added."""
        return x

    def rotation(
        self, x: Float[Tensor, "B T C"], positions: Positions, *, width: int | None = None
    ) -> Rotation | None:
        """Return cosines and sines for `rotate`, on the device and in the precision of `x`.

        Args:
            x: states, of which dtype and device matter.
            positions: positions of the tokens.
            width: number of columns to rotate; None means those of a head.
        """
        return None

    def bias(
        self,
        x: Float[Tensor, "B T C"],
        *,
        query_positions: Positions,
        key_positions: slice | Int[Tensor, "*rows S"],
    ) -> Float[Tensor, "*rows H T S"] | None:
        """Return what is added to the attention scores of each head, in the dtype of `x`."""
        return None


class NoPosition(Position):
    """No position encoding: a causal mask alone reveals the order (Kazemnejad et al. 2023)."""


class Learned(Position):
    """A learned vector for each position, added to the embeddings (GPT-2).

    Args:
        context_length: number of positions that have a vector.
        dim: width C of the model.
    """

    def __init__(self, context_length: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(context_length, dim)

    def embed(self, x: Float[Tensor, "B T C"], positions: Positions) -> Float[Tensor, "B T C"]:
        """Add the vectors of the positions.

        Raises:
            ValueError: there are more positions than vectors.
        """
        last = positions.stop if isinstance(positions, slice) else positions.shape[-1]
        if last > self.embedding.num_embeddings:
            raise ValueError(
                f"{last} positions are more than context_length={self.embedding.num_embeddings}: "
                "there are no learned vectors for the others; shorten the text or choose a model "
                "with rotary, alibi or sinusoidal positions"
            )
        # Padding on the left has position -1; it may take any vector, as nothing attends to it.
        index = as_index(positions, x.device).clamp(min=0)
        return x + self.embedding(index)


class Sinusoidal(Position):
    """Fixed sines and cosines of many wavelengths, added to the embeddings (Vaswani et al. 2017).

    Args:
        dim: width C of the model, even.
        theta: the longest wavelength, in positions, divided by 2π.
    """

    def __init__(self, dim: int, theta: float = 10000.0) -> None:
        super().__init__()
        self.dim = _even("dim", dim)
        self.theta = theta

    def embed(self, x: Float[Tensor, "B T C"], positions: Positions) -> Float[Tensor, "B T C"]:
        """Add sin(angle) to the even columns and cos(angle) to the odd ones."""
        angle = angles(x, positions, dim=self.dim, theta=self.theta)
        # Two of (…, T, C/2) -> (…, T, C/2, 2) -> (…, T, C): sines and cosines alternate.
        waves = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
        return x + waves.to(x.dtype)


class Rotary(Position):
    """Rotation of queries and keys by angles proportional to the position (Su et al. 2021, RoFormer).

    The score of a query and a key then depends only on the distance between them. Column j of the R rotated columns
    is paired with column j + R/2, as in Llama.

    Args:
        dim: width C of the model.
        num_heads: number of query heads.
        head_dim: width D of a head, even; None means `dim / num_heads`, as in `Attention`.
        theta: the longest wavelength divided by 2π; larger for longer contexts.
        scaling: slows the rotation for contexts longer than the model was pretrained with.
        fraction: share R / D of a head's columns that rotate. The others carry no position; GPT-NeoX rotates a quarter
            (Black et al. 2022, section 2.1.1).

    Raises:
        ValueError: the number of columns that rotate is odd, none, or too small for a scaling.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        theta: float = 10000.0,
        scaling: RotaryScaling | None = None,
        fraction: float = 1.0,
    ) -> None:
        super().__init__()
        self.head_dim = head_width(dim, num_heads, head_dim=head_dim)
        self.theta = theta
        self.scaling = scaling
        self.fraction = fraction
        self.rotated_dim = _rotated(self.head_dim, fraction, at_least=2 if scaling is None else 4)

    def rotation(
        self, x: Float[Tensor, "B T C"], positions: Positions, *, width: int | None = None
    ) -> Rotation:
        """Return cosines and sines of the angles, each (…, 1, T, R/2): the same for all heads."""
        dim = self.rotated_dim if width is None else width
        angle = angles(x, positions, dim=dim, theta=self.theta, scaling=self.scaling).unsqueeze(-3)
        if self.scaling is None:
            return angle.cos(), angle.sin()
        return angle.cos() * self.scaling.amplitude, angle.sin() * self.scaling.amplitude


class ALiBi(Position):
    """Scores lowered in proportion to the distance, with a slope per head (Press et al. 2022).

    Args:
        num_heads: number H of query heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def bias(
        self,
        x: Float[Tensor, "B T C"],
        *,
        query_positions: Positions,
        key_positions: slice | Int[Tensor, "*rows S"],
    ) -> Float[Tensor, "*rows H T S"]:
        """Return -slope · distance of each head, query and key."""
        queries, keys = (as_index(p, x.device) for p in (query_positions, key_positions))
        # (…, T, 1) - (…, 1, S) -> (…, T, S); negative for later keys, which a causal mask hides.
        distance = queries[..., :, None] - keys[..., None, :]
        # (H, 1, 1) * (…, 1, T, S) -> (…, H, T, S)
        slopes = self.slopes(x.device).to(x.dtype)
        return -slopes[:, None, None] * distance.unsqueeze(-3)

    def slopes(self, device: torch.device | None = None) -> Float[Tensor, "H"]:
        """Return 2^(-8h/H) for h = 1 … H if H is a power of two.

        For other H: the slopes of the next lower power of two, then every second one of the next
        higher power, as in the authors' code.
        """
        # The largest power of two that is at most H.
        below = 2 ** (self.num_heads.bit_length() - 1)
        steps = torch.arange(1, below + 1, device=device) / below
        between = (torch.arange(self.num_heads - below, device=device) + 0.5) / below
        return 2.0 ** (-8 * torch.cat((steps, between)))


def is_same_position(one: Position | None, other: Position | None) -> bool:
    """Return whether two encodings are one, or are of one class with equal settings."""
    return one is other or (type(one) is type(other) and _settings(one) == _settings(other))


def _settings(position: Position | None) -> dict[str, object]:
    """Return the public attributes of an encoding; those of torch begin with an underscore."""
    return {name: value for name, value in vars(position).items() if not name.startswith("_")}


def next_positions(
    tokens: Int[Tensor, "B T"], cache: Cache | None, *, attention_mask: Bool[Tensor, "B T"] | None
) -> Positions:
    """Return the positions after those of the cache, or from 0 on: a slice, or (B, T) if rows are padded.

    A padded row counts only its real tokens. Padding before the text has position -1, and no real token
    attends to it.
    """
    start = cache.length if cache is not None else 0
    if attention_mask is None and (cache is None or not cache.per_row):
        return slice(start, start + tokens.shape[1])
    real = torch.ones_like(tokens) if attention_mask is None else attention_mask
    # (B, 1): the last position of each row so far.
    last = cache.positions[:, start - 1 : start] if cache is not None and start else -1
    return last + real.cumsum(dim=1)


def as_index(positions: Positions, device: torch.device) -> Int[Tensor, "*rows T"]:
    """Return positions as a tensor of indices."""
    if isinstance(positions, slice):
        return torch.arange(positions.start, positions.stop, device=device)
    return positions


def angles(
    x: Tensor, positions: Positions, *, dim: int, theta: float, scaling: RotaryScaling | None = None
) -> Float[Tensor, "*rows T half_dim"]:
    """Return position · theta^(-2j/dim) for j = 0 … dim/2 - 1, on the device of `x`."""
    # At least float32: bfloat16 has 8 significant bits and cannot tell position 256 from 257.
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=dtype, device=x.device) / dim)
    if scaling is not None:
        frequencies = scaling(frequencies)
    # (…, T, 1) * (dim/2) -> (…, T, dim/2)
    return as_index(positions, x.device).to(dtype)[..., None] * frequencies


def rotate(x: Float[Tensor, "B heads T D"], rotation: Rotation) -> Float[Tensor, "B heads T D"]:
    """Rotate each pair of columns (j, j + R/2) of `x` by its angle; columns from R on stay the same.

    Args:
        x: queries or keys.
        rotation: cosines and sines, from `Rotary.rotation`.
    """
    cos, sin = (part.to(x.dtype) for part in rotation)
    half = cos.shape[-1]
    left, right, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    # The 2 x 2 rotation matrix of each pair. As R(m)ᵀ R(n) = R(n - m), the score of a query at m and a
    # key at n depends on n - m only.
    return torch.cat((left * cos - right * sin, right * cos + left * sin, rest), dim=-1)


def _rotated(head_dim: int, fraction: float, *, at_least: int) -> int:
    """Return the number of columns that rotate."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} is out of range; give more than 0 and at most 1")
    columns = int(head_dim * fraction)
    _even(
        "head_dim" if fraction == 1 else f"head_dim · fraction = {head_dim} · {fraction}", columns
    )
    if columns < at_least:
        raise ValueError(
            f"fraction={fraction} of head_dim={head_dim} is {columns}, fewer than {at_least} columns; give a "
            "larger fraction, or wider heads"
        )
    return columns


def _even(name: str, width: int) -> int:
    if width % 2:
        raise ValueError(
            f"{name}={width} is odd: sines and cosines come in pairs; choose an even number"
        )
    return width
