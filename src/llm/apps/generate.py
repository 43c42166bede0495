"""`llm generate`: continue prompts with what a run has learned, or choose the best of several answers."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="generate")
def main(config: DictConfig) -> None:
    """Compose, then write. What is slow to import waits until there is something to write."""
    if config.reward is None:
        from llm.apps.writing import write

        write(config)
    else:
        from llm.apps.choosing import choose

        choose(config)
