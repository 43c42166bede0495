"""`llm train`: from a configuration to a trained run. Pretraining and every finetune come through here."""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from llm import runs
from llm.config.point import Point


def _run_name(name: str | None) -> str:
    """The run directory's name: the one given, or one of the overrides of this command."""
    hydra = HydraConfig.get()
    return name or runs.name_of(runs.base_of(hydra.runtime.choices), hydra.overrides.task)


OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


def main(point: Point) -> None:
    """Train. What is slow to import waits until there is something to train."""
    from llm.apps import ranks

    directory = Path(point.directory).absolute()
    ranks.adopt_slurm()
    hardware = ranks.place(point.config)
    if ranks.are_missing(hardware):
        from llm.apps.refusing import require_division
        from llm.apps.training import adopted

        require_division(adopted(point.config, point.own), hardware)
        sys.exit(ranks.launch(["train", *sys.argv[1:]], hardware, directory))
    with ranks.reported():
        from llm.apps.training import train

        train(point.config, directory, point.own, point.choices, point.options)
