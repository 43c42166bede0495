"""`llm classify`: name the class of each line with what a run has learned."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="classify")
def main(config: DictConfig) -> None:
    """Compose, then classify. What is slow to import waits until there is something to read."""
    from llm.apps.classifying import classify

    classify(config)
