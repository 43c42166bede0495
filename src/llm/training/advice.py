"""Advice in the summary of a run whose budget is very small."""

import math
from collections.abc import Callable, Iterator

from llm.training.trainer import TrainerSettings

FEW = 100  # optimizer steps; a shorter run gets advice


def advise_budget(
    settings: TrainerSettings,
    steps: int,
    *,
    rows: int,
    batches_per_epoch: int,
    schedule: Callable[[int, int], float],
) -> Iterator[str]:
    """Yield advice for a run of few steps, and for one whose learning rate does not reach its peak."""
    if steps >= FEW:
        return
    if settings.max_epochs is not None:
        epoch = batches_per_epoch / settings.accumulate
        yield (
            f"few steps: {steps:,}, and {epoch:.3g} in an epoch of {rows:,} rows; "
            f"use trainer.max_epochs={math.ceil(FEW / epoch)} for {FEW} steps, or a smaller data.batch_size"
        )
    peak = max(schedule(step, steps) for step in range(steps))
    if peak < 1:
        yield (
            f"the learning rate reaches only {peak:.0%} of optimizer.lr: the warm-up is longer than the run; "
            f"set schedule.warmup_steps={steps // 10}"
        )
