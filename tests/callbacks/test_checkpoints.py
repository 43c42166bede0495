"""Selection of the best validation by the loss, or by another metric with the loss as tie-breaker."""

import pytest

from llm.callbacks.checkpoints import WORST, Checkpoints, score_of
from llm.callbacks.early_stopping import EarlyStopping
from llm.config.errors import UserError
from llm.tasks.pretraining import Pretraining


def task(**metrics):
    made = Pretraining.__new__(Pretraining)
    made.metrics = {f"val/{name}": value for name, value in metrics.items()}
    return made


def test_higher_accuracy_is_better_and_lower_loss_breaks_ties():
    validations = [
        task(loss=0.4, accuracy=0.5),
        task(loss=0.9, accuracy=0.7),
        task(loss=0.8, accuracy=0.7),
    ]
    scores = [score_of(each, "val/accuracy") for each in validations]
    assert sorted(scores) == [scores[2], scores[1], scores[0]]
    losses = [score_of(each, "val/loss") for each in validations]
    assert min(losses) == losses[0]
    assert max(*scores, *losses) < WORST


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(UserError, match=r"monitor=val/acuracy: .*did you mean val/accuracy"):
        score_of(task(loss=1.0, accuracy=0.5), "val/acuracy")


@pytest.mark.parametrize("callback", [Checkpoints, EarlyStopping])
def test_best_value_of_another_metric_is_not_restored(callback):
    by_loss, by_accuracy = callback(), callback(monitor="val/accuracy")
    state = by_loss.state_dict() | {"best": [0.1, 0.1] if callback is Checkpoints else 0.1}
    fresh = by_accuracy.best
    by_accuracy.load_state_dict(state)
    assert by_accuracy.best == fresh
    by_loss.load_state_dict(state)
    assert by_loss.best in (0.1, (0.1, 0.1))
    again = callback()
    again.load_state_dict(by_loss.state_dict())
    assert again.best == by_loss.best
