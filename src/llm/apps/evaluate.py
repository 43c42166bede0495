"""`llm evaluate`: measure what a run has learned."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Compose, then measure. What is slow to import waits until there is something to measure."""
    from llm.apps.evaluating import evaluate

    evaluate(config)
