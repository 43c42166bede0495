"""Reading of GGUF, the file format of llama.cpp: values by key, then tensors, unread.

    "GGUF" | version | number of tensors | number of values | values | names, shapes and offsets | padding | data

Numbers are little-endian. A string is its length in 8 bytes and its UTF-8 bytes. A value is its key, the number of its
type, and its bytes. An array is the type and the number of its items, followed by the items.

A file may be untrusted: no number in the header is used before it is compared with the size of the file.

Source: ggml, docs/gguf.md.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from llm.checkpoints.lazy_tensor import LazyTensor, Shape, in_bytes
from llm.config.errors import ConfigError
from llm.config.reading import FileError, require_regular
from llm.weights.gguf_library import gguf_library

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
# Formats of `struct`, by the number of a type.
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
FLOAT, STRING, ARRAY = 6, 8, 9
# Types of tensors that torch has, by number.
DTYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}

# The header of a published file has 10 MB, most of it the vocabulary and the merges.
MOST_BYTES = 2**28
MOST_ITEMS = 2**24  # in all arrays together
MOST_TENSORS = 2**20
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: the file.
        name: its name.
        kind: the number of its type.
        shape: its sizes, in the order of torch.
        start: offset of its first byte.
    """

    path: Path
    name: str
    kind: int
    shape: Shape
    start: int

    @property
    def size(self) -> int:
        """The number of its bytes.

        Raises:
            ValueError: its rows do not consist of whole blocks.
        """
        block, size = gguf_library().GGML_QUANT_SIZES[self.kind]
        if self.shape[-1] % block:
            raise ValueError(
                f"{self.name} has rows of {self.shape[-1]} values, in blocks of {block}"
            )
        return math.prod(self.shape) // block * size

    def lazy(self) -> LazyTensor:
        """Return the tensor, unread."""
        return LazyTensor(self.name, self.shape, partial(_read, self))

    def unbind(self) -> list[LazyTensor]:
        """Return the tensors along the first axis, unread."""
        size = self.size // max(1, self.shape[0])
        return [
            StoredTensor(
                self.path, self.name, self.kind, self.shape[1:], self.start + n * size
            ).lazy()
            for n in range(self.shape[0])
        ]


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        values: the values, by key.
        tensors: the tensors, by name.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a file.

    Raises:
        ConfigError: the file does not exist, is not a GGUF file, is cut short, or has tensors of an unknown type.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            return _read_header(path, file)
    except FileError as error:
        raise ConfigError(f"weights.path: {error}") from None
    except OSError as error:
        raise ConfigError(
            f"weights.path: {path} cannot be read ({error.strerror}); give a GGUF file"
        ) from None
    except (ValueError, struct.error) as error:
        raise ConfigError(
            f"weights.path: {path} is not a complete GGUF file ({error}); download it again"
        ) from None


def _read_header(path: Path, file: BinaryIO) -> GGUFFile:
    size = file.seek(0, 2)
    file.seek(0)
    if (magic := file.read(4)) != MAGIC:
        raise ValueError(f"it begins with {magic!r} instead of {MAGIC!r}")
    header = _Header(file, min(size, MOST_BYTES))
    version = header.number("I")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}, not 2 or 3 in little-endian order")
    num_tensors, num_values = header.number("Q"), header.number("Q")
    if num_tensors > MOST_TENSORS:
        raise ValueError(f"it claims to have {num_tensors:,} tensors")
    values = dict(header.values(num_values))
    parts = values.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ValueError(f"it is one of {parts} files; merge them with llama-gguf-split --merge")
    infos = [header.tensor() for _ in range(num_tensors)]
    start = _aligned(file.tell(), values)
    tensors: dict[str, StoredTensor] = {}
    for name, kind, shape, offset in infos:
        stored = StoredTensor(path, name, kind, shape, start + offset)
        if name in tensors:
            raise ValueError(f"the tensor {name!r:.60} occurs twice")
        if stored.start + stored.size > size:
            raise ValueError(f"the tensor {name!r:.60} ends beyond its end")
        tensors[name] = stored
    _require_readable({stored.kind for stored in tensors.values()})
    return GGUFFile(path, values, tensors)


def _aligned(position: int, values: Mapping[str, Any]) -> int:
    """Return where the data begins, after the header and the padding."""
    alignment = values.get(ALIGNMENT, 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**16:
        raise ValueError(f"{ALIGNMENT} is {alignment!r:.60}")
    return -(-position // alignment) * alignment


@dataclass
class _Header:
    """The header, read from front to back.

    Attributes:
        file: the open file.
        end: no value may end beyond this offset.
        items: number of items that arrays may still have.
    """

    file: BinaryIO
    end: int
    items: int = MOST_ITEMS

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if size > self.end - self.file.tell():
            raise ValueError("its header is cut short or too large")
        return self.file.read(size)

    def number(self, code: str) -> Any:
        """Return the next number of a format of `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        """Return the next string."""
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def values(self, number: int) -> Iterator[tuple[str, Any]]:
        """Yield the next values with their keys."""
        seen: set[str] = set()
        for _ in range(number):
            key = self.string()
            if key in seen:
                raise ValueError(f"the key {key!r:.60} occurs twice")
            seen.add(key)
            yield key, self.value(self.number("I"), key=key)

    def value(self, kind: int, *, key: str) -> Any:
        """Return the next value of a type."""
        if kind == STRING:
            return self.string()
        if kind == FLOAT:  # the shortest decimal number: 1e-05, not 9.999999747378752e-06
            return float(str(np.float32(self.number("f"))))
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise ValueError(f"{key!r:.60} has the unknown type {kind}")
        return self.array(self.number("I"), self.number("Q"), key=key)

    def array(self, kind: int, number: int, *, key: str) -> list[Any]:
        """Return the next items of a type."""
        self.items -= number
        if self.items < 0:
            raise ValueError(f"{key!r:.60} claims to have {number:,} items")
        if kind == STRING:
            return [self.string() for _ in range(number)]
        if kind not in NUMBERS:
            raise ValueError(f"{key!r:.60} is an array of the type {kind}")
        code = f"<{number}{NUMBERS[kind]}"
        return list(struct.unpack(code, self.take(struct.calcsize(code))))

    def tensor(self) -> tuple[str, int, Shape, int]:
        """Return the name, type, shape and offset of the next tensor."""
        name = self.string()
        dimensions = self.number("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"the tensor {name!r:.60} has {dimensions} dimensions")
        # The fastest axis is the first in the file, and the last in torch.
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind = self.number("I")
        if kind not in gguf_library().GGML_QUANT_SIZES:
            raise ValueError(f"the tensor {name!r:.60} has the unknown type {kind}")
        return name, kind, shape, self.number("Q")


def _require_readable(kinds: set[int]) -> None:
    """Require types whose values can be computed, by trying one block of each."""
    gguf = gguf_library()
    for kind in kinds - DTYPES.keys():
        block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        try:
            gguf.dequantize(block, gguf.GGMLQuantizationType(kind))
        except NotImplementedError:
            name = gguf.GGMLQuantizationType(kind).name
            raise ValueError(
                f"it has tensors of the type {name}, which the library gguf does not read"
            ) from None


def _read(stored: StoredTensor) -> Tensor:
    """Return the values: quantised ones in float32, others as they are stored."""
    if (dtype := DTYPES.get(stored.kind)) is not None:
        return in_bytes(stored.path, stored.start, dtype=dtype, shape=stored.shape)
    gguf = gguf_library()
    rows = math.prod(stored.shape[:-1])
    shape = (rows, stored.size // max(1, rows))
    data = in_bytes(stored.path, stored.start, dtype=torch.uint8, shape=shape)
    values = gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType(stored.kind))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(stored.shape)
