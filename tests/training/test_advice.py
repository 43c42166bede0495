"""Advice for runs that are too short to learn anything."""

from functools import partial

import pytest

from llm.optim.schedules import cosine
from llm.training.advice import advise_budget
from llm.training.trainer import TrainerSettings


def advice(steps, warmup=0, **settings):
    schedule = partial(cosine, warmup_steps=warmup)
    given = {"rows": 21, "batches_per_epoch": 3, "schedule": schedule}
    return list(advise_budget(TrainerSettings(**settings), steps, **given))


def test_few_steps_are_reported_with_the_epochs_that_give_more():
    (line,) = advice(12, max_epochs=4)
    assert line.startswith("few steps: 12, and 3 in an epoch of 21 rows; ")
    assert "use trainer.max_epochs=34 for 100 steps" in line
    (line,) = advice(6, max_epochs=4, accumulate=2)
    assert "and 1.5 in an epoch of 21 rows; use trainer.max_epochs=67 for 100 steps" in line
    assert advice(100, max_epochs=34) == []
    assert advice(12, max_steps=12) == [], "max_steps was chosen on purpose"


@pytest.mark.parametrize(
    ("steps", "warmup", "reached"), [(12, 50, "24%"), (12, 12, None), (1, 0, None)]
)
def test_warm_up_longer_than_the_run_is_reported(steps, warmup, reached):
    lines = advice(steps, warmup, max_steps=steps)
    assert [f"reaches only {reached} of optimizer.lr" in line for line in lines] == (
        [True] if reached else []
    )
