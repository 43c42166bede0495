"""The budget of a run: a budget on the command line replaces that of the experiment."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from llm.config.fingerprint import BUDGET
from llm.config.overrides import key_of


def give_one_budget(config: DictConfig, overrides: Sequence[str]) -> None:
    """Set all other budgets to null if the command line sets one.

    So `experiment=instruct trainer.max_steps=2`, whose experiment sets epochs, has one budget. A null on the command
    line does not replace a budget.
    """
    given = {*map(key_of, overrides)}
    if all(OmegaConf.select(config, key) is None for key in given.intersection(BUDGET)):
        return
    for key in BUDGET:
        if key not in given and OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, None)
