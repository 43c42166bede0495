"""`llm plan`: what a model, a budget and some devices would take, before anybody pays for them."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from llm.apps import train  # registers what train.yaml, on which plan.yaml stands, resolves  # noqa: F401


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="plan")
def main(config: DictConfig) -> None:
    """Compose, then plan. What is slow to import waits until there is something to plan."""
    from llm.apps.planning import plan

    plan(config, list(HydraConfig.get().overrides.task))
