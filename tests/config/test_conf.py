"""What ships in conf/: every option of every group composes and passes the check."""

import pytest
from hydra.core.object_type import ObjectType

from llm.apps import train  # registers the resolver that its configuration names  # noqa: F401
from llm.config.check import check
from llm.config.composition import compose, open_loader
from llm.config.errors import ConfigError

GROUPS = ["model", "size", "tokenizer", "data", "task", "weights", "optimizer", "schedule"]
PARTS = ["position", "norm", "attention", "kernel", "feed_forward", "residual", "mask", "init"]
REST = ["hardware", "logger", "callbacks", "experiment"]


@pytest.mark.parametrize("group", [*GROUPS, *(f"model/{part}" for part in PARTS), *REST])
def test_every_option_passes(group):
    loader = open_loader("llm.apps.train", "pkg://llm.conf")
    options = loader.get_group_options(group, ObjectType.CONFIG)
    assert options
    words = ["size=nano"] if group != "size" else []
    problems = {option: _problems(loader, [*words, f"{group}={option}"]) for option in options}
    # All that may be wrong is what only the user knows.
    wrong = [
        line for lines in problems.values() for line in lines if "has no value; set" not in line
    ]
    assert wrong == []


def _problems(loader, words):
    try:
        check(compose(loader, "train", words))
    except ConfigError as error:
        return error.problems
    return ()
