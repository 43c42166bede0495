"""Tensors in files: their shapes are read from the headers, their numbers one tensor at a time.

A tensor that is read is a memory map of its part of the file. Letting it go lets go of its pages, so
that filling a model needs the model's own memory and that of the one tensor being copied.
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
    """A tensor at rest.

    Attributes:
        name: what it is called where it is stored, for messages.
        shape: its sizes, known without reading it.
        read: gives the tensor, on the CPU; it may be a map of the file and must not be written to.
    """

    name: str
    shape: Shape
    read: Callable[[], Tensor]


def in_memory(state: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Tensors that are read already, as if they were stored."""
    return {
        name: LazyTensor(name, tuple(tensor.shape), partial(tensor.view_as, tensor))
        for name, tensor in state.items()
    }


def in_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        ConfigError: the file is none, or is cut short.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be read as safetensors ({error}); fetch it anew"
        ) from None
    return {
        name: LazyTensor(name, shape, partial(_from_safetensors, path, name))
        for name, shape in shapes.items()
    }


def in_torch_file(path: Path, *keys: str) -> dict[str, LazyTensor]:
    """The tensors of a dictionary that `torch.save` wrote, by name; nothing in the file is executed.

    Args:
        path: the file, a zip archive as torch writes since version 1.6.
        keys: where in the saved object the dictionary is.

    Raises:
        ConfigError: the file holds no such dictionary, or is damaged.
    """
    return in_header(path, read_header(path), *keys)


def in_header(path: Path, header: Any, *keys: str) -> dict[str, LazyTensor]:
    """The tensors of a dictionary in a file of which the header was read.

    Args:
        path: the file.
        header: what `read_header` has of it.
        keys: where in the header the dictionary is.

    Raises:
        ConfigError: the file holds no such dictionary.
    """
    with _readable(path):
        for key in keys:
            header = header[key]
        return {name: _in_record(path, name, tensor=header[name]) for name in header}


def read_header(path: Path) -> Any:
    """What `torch.save` wrote, its tensors with shapes alone.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigError: the file is none of torch's, or is damaged.
    """
    with _readable(path):
        # On the device `meta` torch builds every tensor but reads none, and notes where its bytes begin.
        return torch.load(stored_archive(path), map_location="meta", weights_only=True)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ConfigError):
        raise
    except Exception as error:  # a damaged archive fails anywhere, in torch or in its pickle
        raise ConfigError(
            f"{path} cannot be read as a file of torch ({_first_line(error)}); fetch it anew, or save it "
            "with safetensors"
        ) from error


def in_bytes(path: Path, start: int, *, dtype: torch.dtype, shape: Shape) -> Tensor:
    """A contiguous tensor mapped from the middle of a file.

    Args:
        path: the file.
        start: where its first byte is.
        dtype: what its numbers are, in the order of bytes of this machine.
        shape: its sizes.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    # Copy on write: torch wants memory that could be written to, and the file is never changed.
    mapped = np.memmap(path, dtype=np.uint8, mode="c", offset=start, shape=(size,))
    return torch.from_numpy(mapped).view(dtype).view(shape)


def _from_safetensors(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:  # opened for each: while it is open its pages stay
        return file.get_tensor(name)


def _in_record(path: Path, name: str, *, tensor: Tensor) -> LazyTensor:
    storage = tensor.untyped_storage()
    start = storage._checkpoint_offset
    if start is None:
        raise ValueError("the format before torch 1.6")
    numbers = storage.nbytes() // tensor.dtype.itemsize
    layout = (tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def read() -> Tensor:
        return in_bytes(path, start, dtype=tensor.dtype, shape=(numbers,)).as_strided(*layout)

    return LazyTensor(name, tuple(tensor.shape), read)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
