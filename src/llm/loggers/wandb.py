"""Weights & Biases, offline unless the user chose to send."""

import os
import secrets
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
    """A W&B logger with an explicit signature; a run directory that is resumed keeps its W&B run.

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
    return WandbLogger(
        id=_run_id(Path(directory) / "wandb_id"),
        resume="allow",
        name=name,
        save_dir=directory,
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        mode=mode,
    )


def _run_id(file: Path) -> str:
    """The id that this directory's first run drew."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4), "utf-8")
    return file.read_text("utf-8")
