"""`llm export`: write a language model as a folder that Hugging Face's library reads."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="export")
def main(config: DictConfig) -> None:
    """Compose, then write. What is slow to import waits until there is something to write."""
    from llm.apps.exporting import export

    export(config)
