"""`llm train`: from a configuration to a trained run. Pretraining and every finetune come through here."""

import re
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from llm import runs
from llm.config.composition import chosen
from llm.config.errors import ConfigError


def _run_name(name: str | None, experiment: str) -> str:
    """The run directory's name: the one given, or the experiment with the overrides of this command."""
    if name and not re.fullmatch(r"[^./\\][^/\\]*", name):
        raise ConfigError(
            f"name={name}: a run's name is one folder's; leave out slashes and a leading dot"
        )
    return name or runs.name_of(experiment, HydraConfig.get().overrides.task)


OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="train")
def main(config: DictConfig) -> None:
    """Compose, then train. What is slow to import waits until there is something to train."""
    from llm.apps import ranks

    overrides = list(HydraConfig.get().overrides.task)
    directory = HydraConfig.get().runtime.output_dir
    ranks.adopt_slurm()
    hardware = ranks.place(config)
    if ranks.are_missing(hardware):
        from llm.apps.refusing import require_division
        from llm.apps.training import adopted

        require_division(adopted(config, overrides), hardware)
        sys.exit(ranks.launch(["train", *sys.argv[1:]], hardware, directory))
    with ranks.reported():
        from llm.apps.training import train

        train(config, directory, overrides, chosen(), options(HydraConfig.get()))


def options(hydra: Any) -> list[str]:
    """What a command line holds beside overrides, and its run is found by: configs of the user's own, and folders."""
    sources = hydra.runtime.config_sources
    folders = [Path(each.path) for each in sources if each.provider == "command-line"]
    words = [word for folder in folders for word in ("--config-dir", str(runs.short(folder)))]
    if hydra.job.config_name != "train":
        words += ["--config-name", hydra.job.config_name]
    return words + [word for word in hydra.overrides.hydra if not word.startswith("hydra.mode=")]
