"""Checkpoints: written atomically, verified when read, and free of executable content.

A checkpoint is a file, or a folder with a shard of every device (`llm.checkpoints.sharded`). The functions for reading
take either.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from llm import distributed
from llm.checkpoints import checksums, sharded
from llm.checkpoints.checksums import DamagedCheckpointError, verified
from llm.checkpoints.lazy_tensor import LazyTensor, in_header, read_header
from llm.files import partial_of, stored_archive
from llm.runs import Run, previous_of

Result = TypeVar("Result")


class Opened(NamedTuple):
    """An open checkpoint whose weights are not read yet.

    Attributes:
        path: the checkpoint.
        header: its content, without the values of tensors.
        weights: the weights by name, unread.
    """

    path: Path
    header: dict[str, Any]
    weights: dict[str, LazyTensor]


def save_checkpoint(
    checkpoint: dict[str, Any], path: Path, *, keeps_previous: bool = False
) -> None:
    """Write a checkpoint as a file, atomically, and record its SHA-256.

    Args:
        checkpoint: tensors and plain data.
        path: the file.
        keeps_previous: whether to keep the replaced checkpoint, for `fall_back`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        with checksums.replacing_folder(path, is_other_kind=path.is_dir()):
            checksums.replace(partial, path, previous=previous_of(path) if keeps_previous else None)
    finally:
        partial.unlink(missing_ok=True)


def fall_back(path: Path) -> bool:
    """Replace a checkpoint by the previous one.

    Returns:
        Whether the previous checkpoint existed and was undamaged.
    """
    previous = undamaged_previous(path)
    if previous is None:
        return False
    checksums.restore_previous(previous, path / sharded.INDEX if path.is_dir() else path)
    return True


def undamaged_previous(path: Path) -> Path | None:
    """Return the previous checkpoint (of a folder, its previous index) if it was kept and is undamaged."""
    previous = path / sharded.PREVIOUS if path.is_dir() else previous_of(path)
    try:
        digest_of(previous)
    except (FileNotFoundError, DamagedCheckpointError):
        return None
    return previous


def requested_checkpoint(run: Run, checkpoint: Literal["best", "last"]) -> Path:
    """Return the path of a run's checkpoint of this name; its last one if the best was not written yet."""
    is_best = checkpoint == "best" and (run.best.exists() or not run.has_last)
    return run.best if is_best else run.last


def read_usable(
    run: Run, read: Callable[[Path], Result], *, checkpoint: Literal["best", "last"] = "best"
) -> Result:
    """Read the `requested_checkpoint` of a run; if the last one is damaged or missing, warn and read the previous one.

    Args:
        run: the run; its files are not changed.
        read: opens a checkpoint; raises one of the errors below.
        checkpoint: name of the checkpoint.

    Raises:
        FileNotFoundError: the run has no checkpoint.
        DamagedCheckpointError: the checkpoint is damaged, and no previous one can be read.
    """
    path = requested_checkpoint(run, checkpoint)
    try:
        return read(path)
    except (FileNotFoundError, DamagedCheckpointError) as error:
        previous = undamaged_previous(path) if path == run.last else None
        if previous is None:
            raise
        if distributed.is_first():
            step = header_of(previous)["global_step"]
            warnings.warn(f"{error}; using the previous checkpoint, of step {step}", stacklevel=2)
        return read(previous)


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a whole checkpoint of tensors and plain data, after verifying its SHA-256.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        DamagedCheckpointError: it is damaged.
    """
    if sharded.index_of(path):
        return sharded.consolidated(open_verified(path), map_location)
    return torch.load(stored_archive(verified(path)), map_location=map_location, weights_only=True)


def open_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint whose large tensors are read only when sliced.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        DamagedCheckpointError: it is damaged.
    """
    if index := sharded.index_of(path):
        return sharded.read_index(index).read()
    return torch.load(
        stored_archive(verified(path)), map_location="cpu", weights_only=True, mmap=True
    )


def open_verified(path: Path) -> dict[str, Any]:
    """Open a checkpoint like `open_checkpoint`, but verify all files of a folder first.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        DamagedCheckpointError: it is damaged.
    """
    if file := sharded.index_of(path):
        index = sharded.read_index(file)
        index.verify()
        return index.read()
    return open_checkpoint(path)


def header_of(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint, without the values of tensors and without verifying it.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ConfigError: it cannot be read.
        DamagedCheckpointError: the index of a sharded checkpoint is damaged.
    """
    return open_checkpoint(path) if sharded.index_of(path) else read_header(path)


def open_checkpoint_weights(path: Path) -> Opened:
    """Open a checkpoint without reading its weights.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        DamagedCheckpointError: it is damaged.
    """
    if sharded.index_of(path):
        header = open_verified(path)
        found = header["state_dict"].items()
        weights = {name: LazyTensor(name, tuple(each.shape), each.read) for name, each in found}
        return Opened(path, header, weights)
    header = read_header(verified(path))
    return Opened(path, header, in_header(path, header, "state_dict"))


def digest_of(path: Path) -> str:
    """Return the SHA-256 of an undamaged checkpoint; for a folder that of its index, which contains those of its files.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        DamagedCheckpointError: it is damaged.
    """
    if index := sharded.index_of(path):
        sharded.read_index(index).verify()
    return checksums.verified_digest(index or path)
