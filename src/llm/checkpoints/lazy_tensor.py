"""Lazy tensors in files: shapes are read from the headers, values one tensor at a time.

Each tensor is a memory map of the file. Filling a model needs the memory of the model and of one tensor.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.config.errors import ConfigError
from llm.files import stored_archive

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet.

    Attributes:
        name: its name in the file, for messages.
        shape: its sizes.
        read: returns the tensor, on the CPU; it may be a map of the file, so do not modify it.
    """

    name: str
    shape: Shape
    read: Callable[[], Tensor]


def in_memory(state: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Return tensors in memory as lazy tensors."""
    return {
        name: LazyTensor(name, tuple(tensor.shape), partial(tensor.view_as, tensor))
        for name, tensor in state.items()
    }


def in_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file, by name.

    Raises:
        ConfigError: the file is not a safetensors file, or is cut short.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path}: cannot be read as safetensors ({error}); download it again"
        ) from None
    return {
        name: LazyTensor(name, shape, partial(_from_safetensors, path, name))
        for name, shape in shapes.items()
    }


def in_torch_file(path: Path, *keys: str) -> dict[str, LazyTensor]:
    """Return the tensors of a dictionary written by `torch.save`, by name; nothing in the file is executed.

    Args:
        path: the file, a zip archive as written by torch since version 1.6.
        keys: keys of the dictionary in the saved object.

    Raises:
        ConfigError: the file does not contain the dictionary, or is damaged.
    """
    return in_header(path, read_header(path), *keys)


def in_header(path: Path, header: Any, *keys: str) -> dict[str, LazyTensor]:
    """Return the tensors of a dictionary in a file whose header was read.

    Args:
        path: the file.
        header: result of `read_header`.
        keys: keys of the dictionary in the header.

    Raises:
        ConfigError: the file does not contain the dictionary.
    """
    with _readable(path):
        for key in keys:
            header = header[key]
        return {name: _in_record(path, name, tensor=header[name]) for name in header}


def read_header(path: Path) -> Any:
    """Return the object written by `torch.save`, with tensors that have shapes but no values.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is not from torch, or is damaged.
    """
    with _readable(path):
        # On the device `meta` torch reads no values, but records the offset of each tensor's bytes.
        return torch.load(stored_archive(path), map_location="meta", weights_only=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConfigError):
        raise
    except Exception as error:  # a damaged archive may fail anywhere in torch or pickle
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{path}: cannot be read as a torch file ({reason}); download it again, or save it with safetensors"
        ) from error


def in_bytes(path: Path, start: int, *, dtype: torch.dtype, shape: Shape) -> Tensor:
    """Return a contiguous tensor mapped from a file.

    Args:
        path: the file.
        start: offset of its first byte.
        dtype: dtype of its values, in this machine's byte order.
        shape: its sizes.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    # Copy on write: torch requires writable memory, but the file must not change.
    mapped = np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(size,))
    return torch.from_numpy(mapped).view(dtype).view(shape)


def _from_safetensors(path: Path, name: str) -> Tensor:
    # The file is opened for each tensor, because an open file keeps its pages in memory.
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _in_record(path: Path, name: str, *, tensor: Tensor) -> LazyTensor:
    storage = tensor.untyped_storage()
    start = storage._checkpoint_offset
    if start is None:
        raise ValueError("the format is older than torch 1.6")
    elements = storage.nbytes() // tensor.dtype.itemsize
    layout = (tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def read() -> Tensor:
        return in_bytes(path, start, dtype=tensor.dtype, shape=(elements,)).as_strided(*layout)

    return LazyTensor(name, tuple(tensor.shape), read)
