"""Learning rate schedules: functions of a step and the length of the run.

Each returns a factor from 0 to 1 for the optimizer's learning rate. Warm-up step k has the factor
(k + 1) / warmup_steps, so no step has a rate of 0, and the last step of the warm-up has the peak rate. Then the
factor decays to `final_ratio` at the last step, `max_steps - 1`, and keeps this value. A run that is not longer than
its warm-up never decays.

Common arguments: `step` is the next step, from 0; `max_steps` the length of the run; `warmup_steps` the number
of steps of linear warm-up; `final_ratio` the factor of the last step, from 0 to 1.
All schedules raise a ValueError for a negative step or warm-up, a run of no steps or a ratio outside of [0, 1].
"""

import math


def constant(step: int, max_steps: int, *, warmup_steps: int = 0) -> float:
    """Hold the peak after the warm-up."""
    return _warmup(step, max_steps, warmup_steps=warmup_steps)


def linear(step: int, max_steps: int, *, warmup_steps: int = 0, final_ratio: float = 0.0) -> float:
    """Decay linearly from the peak to the last step."""
    remaining = 1 - _progress(step, max_steps, start=_peak(warmup_steps))
    return _warmup(step, max_steps, warmup_steps=warmup_steps) * _decay_to(final_ratio, remaining)


def cosine(step: int, max_steps: int, *, warmup_steps: int = 0, final_ratio: float = 0.1) -> float:
    """Decay along half a cosine from the peak to the last step (Loshchilov and Hutter 2017, eq. 5)."""
    remaining = (1 + math.cos(math.pi * _progress(step, max_steps, start=_peak(warmup_steps)))) / 2
    return _warmup(step, max_steps, warmup_steps=warmup_steps) * _decay_to(final_ratio, remaining)


def wsd(
    step: int,
    max_steps: int,
    *,
    warmup_steps: int = 0,
    final_ratio: float = 0.0,
    decay_fraction: float = 0.2,
) -> float:
    """Warm up, stay at the peak, and decay linearly at the end (Hu et al. 2024, MiniCPM).

    A run can be extended from any step of its stable phase, which a cosine does not allow.

    The decay takes the share `decay_fraction` of the run, from 0 to 1, but begins only after the warm-up.
    """
    if not 0 <= decay_fraction <= 1:
        raise ValueError(
            f"decay_fraction={decay_fraction} is outside of [0, 1]; use a number such as 0.2"
        )
    stable_until = max_steps - 1 - round(decay_fraction * max_steps)
    remaining = 1 - _progress(step, max_steps, start=max(stable_until, _peak(warmup_steps)))
    return _warmup(step, max_steps, warmup_steps=warmup_steps) * _decay_to(final_ratio, remaining)


def _warmup(step: int, max_steps: int, *, warmup_steps: int) -> float:
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps}: is not a number of steps; use 1 or more")
    if step < 0 or warmup_steps < 0:
        raise ValueError(
            f"step={step} and warmup_steps={warmup_steps}: must not be negative; use 0 or more"
        )
    return min(1.0, (step + 1) / max(1, warmup_steps))


def _peak(warmup_steps: int) -> int:
    """Return the first step at the full rate."""
    return max(0, warmup_steps - 1)


def _progress(step: int, max_steps: int, *, start: int) -> float:
    """Return the progress of a decay after step `start`: 0 there, 1 at the last step."""
    if step <= start:
        return 0.0
    return min(1.0, (step - start) / max(1, max_steps - 1 - start))


def _decay_to(final_ratio: float, remaining: float) -> float:
    """Return the factor for a decay to `final_ratio` instead of 0."""
    if not 0 <= final_ratio <= 1:
        raise ValueError(
            f"final_ratio={final_ratio} is outside of [0, 1]; use a number such as 0.1"
        )
    return final_ratio + (1 - final_ratio) * remaining
