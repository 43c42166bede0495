"""Slower rotation for contexts longer than in pretraining.

In `Rotary`, pair j of a head's columns turns by f_j = theta^(-2j/D) radians per position, so f_0 = 1 is the fastest. A
model has not learned the angles beyond its context. A scaling by s lets s times as many positions fit into the angles
that it knows:

| scaling | fast pairs | slow pairs  | pairs between        |
| ------- | ---------- | ----------- | -------------------- |
| linear  | f_j / s    | f_j / s     | f_j / s              |
| NTK     | f_j        | f_j / s     | geometric in j       |
| YaRN    | f_j        | f_j / s     | ramp over j          |
| Llama 3 | f_j        | f_j / s     | ramp over the turns  |

The turns of a pair are those within the context of pretraining.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RotaryScaling:
    """The base class of scalings: a function of the frequencies, in radians per position.

    Args:
        factor: how many times longer the context becomes, 1 or more.

    Raises:
        ValueError: the factor is below 1.
    """

    factor: float = 8.0

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor={self.factor}: give 1 or more")

    @property
    def amplitude(self) -> float:
        """The factor of all cosines and sines, which scales rotated queries and keys."""
        return 1.0

    def __call__(self, frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
        """Return the scaled frequencies."""
        raise NotImplementedError


class LinearScaling(RotaryScaling):
    """All frequencies divided by the factor, as if positions were closer together (Chen et al. 2023).

    Neighbours are then hard to tell apart, so the model needs finetuning.
    """

    def __call__(self, frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
        """Return f_j / s."""
        return frequencies / self.factor


class NTKScaling(RotaryScaling):
    """A larger theta: the slowest pair is slowed by the factor, the fastest not at all (bloc97 2023).

    theta · s^(D/(D-2)) in place of theta, which multiplies f_j by s^(-2j/(D-2)). The idea comes from the neural tangent
    kernel: networks do not learn high frequencies from low ones, so the high ones must be kept. Also in Peng et al.
    2023, YaRN, section 3.1.
    """

    def __call__(self, frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
        """Return f_j · s^(-j/(D/2 - 1))."""
        return frequencies * self.factor ** -(_pairs(frequencies) / (len(frequencies) - 1))


@dataclass(frozen=True)
class YaRNScaling(RotaryScaling):
    """Slow pairs are slowed, fast pairs kept, and attention made sharper (Peng et al. 2023, YaRN).

    Longer contexts spread attention over more keys. So the paper divides the scores by a temperature t, with
    √(1/t) = 0.1 · ln(s) + 1 (equation 22). Here, as in the authors' code, cosines and sines are multiplied by √(1/t)
    (`amplitude`): queries and keys get this factor each, the scores 1/t, and no kernel changes. If only a part of a
    head rotates, only that part of the score is multiplied.

    Args:
        factor: how many times longer the context becomes.
        beta_fast: number of turns above which a pair is fast.
        beta_slow: number of turns below which a pair is slow.
        context_length: context length of pretraining, in tokens.

    Raises:
        ValueError: the factor is below 1, or the bounds are not in order.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    context_length: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_order(beta_slow=self.beta_slow, beta_fast=self.beta_fast)

    @property
    def amplitude(self) -> float:
        """√(1/t), the root of the inverse temperature."""
        return 0.1 * math.log(self.factor) + 1

    def __call__(self, frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
        """Return frequencies between f_j (fast pairs) and f_j / s (slow pairs)."""
        # The paper's ramp is linear in the turns (equation 17). That of the code, which all published models have,
        # is linear in j, from the last fast pair to the first slow one.
        first = self._pair(frequencies, turns=self.beta_fast).floor().clamp(min=0)
        last = self._pair(frequencies, turns=self.beta_slow).ceil()
        last = last.clamp(max=2 * len(frequencies) - 1)  # D - 1, as in the code
        slowed = ((_pairs(frequencies) - first) / (last - first).clamp(min=0.001)).clamp(0, 1)
        return frequencies * (1 - slowed + slowed / self.factor)

    def _pair(self, frequencies: Float[Tensor, "half_dim"], *, turns: float) -> Float[Tensor, ""]:
        """Return which pair turns so many times in the context of pretraining, with a fraction."""
        # f_j = f_1^j, so j = log f_j / log f_1.
        return math.log(2 * math.pi * turns / self.context_length) / frequencies[1].log()


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Slower rotation of long waves, for a longer context than in pretraining (Llama 3.1).

    Short waves do not change; between long and short ones the factor is interpolated. Source: Grattafiori et
    al. 2024, "The Llama 3 herd of models", section 3.4.2, and the code released with Llama 3.1.

    Args:
        factor: divisor of the frequency of long waves.
        low_freq_factor: number of turns in the context of pretraining below which a wave is long.
        high_freq_factor: number of turns above which it is short.
        context_length: context length of pretraining, in tokens.

    Raises:
        ValueError: the factor is below 1, or the bounds are not in order.
    """

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    context_length: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_order(low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor)

    def __call__(self, frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
        """Return the scaled frequencies, in radians per position."""
        turns = self.context_length * frequencies / (2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        # 1 for short waves, 0 for long ones, and a ramp between them.
        kept = ((turns - self.low_freq_factor) / width).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def _pairs(frequencies: Float[Tensor, "half_dim"]) -> Float[Tensor, "half_dim"]:
    """Return 0, 1, … for the pairs, in the precision of the frequencies."""
    return torch.arange(len(frequencies), dtype=frequencies.dtype, device=frequencies.device)


def _require_order(**bounds: float) -> None:
    """Require two positive numbers, the lower first."""
    (low, lower), (high, higher) = bounds.items()
    if not 0 < lower < higher:
        raise ValueError(
            f"{low}={lower} and {high}={higher}: give two positive numbers, the lower first"
        )
