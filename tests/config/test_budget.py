"""A budget on the command line replaces that of the experiment."""

import pytest
from small_runs import checked_points

from llm.config.errors import ConfigError
from llm.config.loader import open_loader


def test_a_budget_on_the_command_line_is_the_only_one():
    loader = open_loader("pkg://llm.conf")
    words = ["experiment=instruct", "weights=scratch", "trainer.max_steps=2"]
    (point,) = checked_points(loader, "train", words)
    assert (point.composed.config.trainer.max_steps, point.composed.config.trainer.max_epochs) == (
        2,
        None,
    )
    (point,) = checked_points(loader, "train", ["trainer.max_epochs=null"])
    assert point.composed.config.trainer.max_steps == 1000
    with pytest.raises(ConfigError, match="max_steps and max_tokens given"):
        checked_points(loader, "train", [*words, "trainer.max_tokens=5"])
