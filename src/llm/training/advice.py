"""Advice in the summary of a run whose budget is too small to learn from."""

import math
from collections.abc import Callable, Iterator

from llm.training.trainer import TrainerSettings

FEW = 100  # optimizer steps


def few_steps(
    settings: TrainerSettings,
    steps: int,
    *,
    rows: int,
    batches_per_epoch: int,
    schedule: Callable[[int, int], float],
) -> Iterator[str]:
    """Say if epochs give few steps, and if the learning rate does not reach its peak in them."""
    if steps >= FEW:
        return
    if settings.max_epochs is not None:
        epoch = batches_per_epoch / settings.accumulate
        yield (
            f"{steps:,} steps are few to learn from: an epoch of {rows:,} rows has {epoch:.3g}; "
            f"trainer.max_epochs={math.ceil(FEW / epoch)} gives {FEW}, a smaller data.batch_size more in each epoch"
        )
    peak = max(schedule(step, steps) for step in range(steps))
    if peak < 1:
        yield (
            f"the learning rate reaches {peak:.0%} of optimizer.lr: the warm-up is longer than the run; "
            f"schedule.warmup_steps={steps // 10} leaves time to learn"
        )
