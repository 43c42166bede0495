"""Checkpoints: written whole or not at all, checked when read, and holding nothing that executes.

One is a file, which one device writes, or a folder, in which every device has written its part
(`llm.weights.sharded`). Who reads one need not ask which.
"""

import os
from pathlib import Path
from typing import Any

import torch

from llm.files import partial_of, stored_archive
from llm.runs import previous_of
from llm.weights import digests, sharded
from llm.weights.digests import DamagedCheckpointError, sha256_of, verified
from llm.weights.stored import Stored, in_torch_file, read_header


def save_checkpoint(
    checkpoint: dict[str, Any], path: Path, *, keeps_previous: bool = False
) -> None:
    """Write a checkpoint as a file, under another name in the same folder first, and record its SHA-256.

    Args:
        checkpoint: tensors and plain data.
        path: the file.
        keeps_previous: whether the checkpoint that it replaces is kept, for `fall_back`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        with digests.set_aside(path, is_wrong=path.is_dir()):
            digests.replace(partial, path, previous=previous_of(path) if keeps_previous else None)
    finally:
        partial.unlink(missing_ok=True)


def fall_back(path: Path) -> bool:
    """Let the checkpoint from before this one take its place.

    Returns:
        Whether there was one, and it was whole.
    """
    if path.is_dir():
        return sharded.fall_back(path)
    previous = previous_of(path)
    try:
        verified(previous)
    except (FileNotFoundError, DamagedCheckpointError):
        return False
    digests.bring_back(previous, path)
    return True


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint and its record."""
    digests.remove(path)


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data, whole, after checking its recorded SHA-256.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpointError: it is not what was written.
    """
    if path.is_dir():
        return sharded.consolidated(sharded.read(path), map_location)
    return torch.load(stored_archive(verified(path)), map_location=map_location, weights_only=True)


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of which this device needs parts: large tensors stay at rest until they are sliced.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpointError: it is not what was written.
    """
    if path.is_dir():
        return sharded.read(path)
    return torch.load(
        stored_archive(verified(path)), map_location="cpu", weights_only=True, mmap=True
    )


def open_whole(path: Path) -> dict[str, Any]:
    """As `open_checkpoint`, but all files of a folder are checked at once, not when they are needed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpointError: it is not what was written.
    """
    if path.is_dir():
        sharded.require_whole(path)
    return open_checkpoint(path)


def header_of(path: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside its tensors, which have shapes and no numbers; nothing is verified.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConfigError: it cannot be read.
        DamagedCheckpointError: an index of parts is not what was written.
    """
    if path.is_dir():
        return sharded.read(path)
    return read_header(path)


def stored_weights(path: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint's `state_dict` by name, at rest.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        DamagedCheckpointError: it is not what was written.
    """
    if not path.is_dir():
        return in_torch_file(verified(path), "state_dict")
    found = sharded.read(path)["state_dict"]
    return {name: Stored(name, tuple(tensor.shape), tensor.read) for name, tensor in found.items()}


def digest_of(path: Path) -> str:
    """The SHA-256 of a checkpoint: of a folder that of its index, which holds those of its files."""
    return sha256_of(path / sharded.INDEX if path.is_dir() else path)
