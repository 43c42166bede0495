"""A budget on the command line takes the place of that of the experiment."""

import pytest

from llm.config.composition import check_points
from llm.config.errors import ConfigError
from llm.config.loader import open_loader


def test_a_budget_on_the_command_line_is_the_only_one():
    loader = open_loader("pkg://llm.conf")
    words = ["experiment=instruct", "weights=scratch", "trainer.max_steps=2"]
    (point,) = check_points(loader, "train", words, multirun=False)
    assert (point.config.trainer.max_steps, point.config.trainer.max_epochs) == (2, None)
    (point,) = check_points(loader, "train", ["trainer.max_epochs=null"], multirun=False)
    assert point.config.trainer.max_steps == 1000
    with pytest.raises(ConfigError, match="max_steps and max_tokens given"):
        check_points(loader, "train", [*words, "trainer.max_tokens=5"], multirun=False)
