"""`llm compare DIR…`: put runs beside one another, in a table and a picture."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Compose, then compare. What is slow to import waits until there is something to read."""
    from llm.apps.comparing import show

    show(config)
