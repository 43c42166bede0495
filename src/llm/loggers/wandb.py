"""Weights & Biases, offline unless the user chose to send."""

import os
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    directory: str,
    name: str,
    project: str = "llm",
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    mode: str = "auto",
) -> WandbLogger:
    """A W&B logger with an explicit signature, whose run's id follows from its directory.

    Args:
        directory: where offline files go: the run directory.
        name: of the run.
        project: of the run.
        entity: user or team; null takes the account's default.
        group: runs that belong together.
        tags: words to filter by.
        mode: `online`, `offline`, `disabled`, or `auto`: online where an API key is set, else offline.

    Raises:
        ValueError: `mode` is none of these.
    """
    modes = ("auto", "online", "offline", "disabled")
    if mode not in modes:
        raise ValueError(f"mode={mode}: choose one of {', '.join(modes)}")
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    Path(directory).mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=name,
        save_dir=directory,
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        mode=mode,
    )
