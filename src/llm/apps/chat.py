"""`llm chat`: talk with a model that was trained on conversations."""

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="pkg://llm.conf", config_name="chat")
def main(config: DictConfig) -> None:
    """Compose, then talk. What is slow to import waits until there is somebody to talk with."""
    from llm.apps.chatting import chat

    chat(config)
