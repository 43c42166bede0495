"""TensorFlow's checkpoint files, read without TensorFlow.

A checkpoint `model.ckpt` is a *tensor bundle*: `model.ckpt.data-00000-of-00001` contains the bytes of all tensors,
`model.ckpt.index` contains the position of each. The index is a sorted table in LevelDB's format:

    data blocks … | index block | footer (48 bytes: handles of two blocks, padding, a magic number)

A handle is an offset and a size, both varints: seven bits per byte, lowest first; the eighth bit is set if another byte
follows. Each block is followed by one byte for its compression and by the masked CRC-32C of block and byte. An entry of
a block consists of the number of bytes that its key shares with the previous key, the rest of the key, and the value.
The block ends with the offsets of the keys written in full, and their number.

The values in the index block are handles of data blocks. The values in data blocks are protocol buffer messages: a
BundleHeaderProto for the key "", a BundleEntryProto for the name of each tensor.

Sources: LevelDB, doc/table_format.md; TensorFlow, core/lib/io/format.cc, core/util/tensor_bundle and
core/protobuf/tensor_bundle.proto; the encoding of protocol buffers, protobuf.dev.
"""

import math
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm.checkpoints.lazy_tensor import LazyTensor, in_bytes
from llm.config.errors import ConfigError
from llm.config.reading import read_bytes

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # bytes after a block: the compression, and a checksum of four bytes
DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}

Message = dict[int, list[Any]]


def in_tensor_bundle(prefix: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a checkpoint by name, unread.

    Args:
        prefix: the common prefix of its files, such as `124M/model.ckpt`.

    Raises:
        ConfigError: a file is missing or damaged, or uses a feature that GPT-2's files do not.
    """
    index = Path(f"{prefix}.index")
    try:
        entries = dict(_table(read_bytes(index)))
        header = _message(entries.pop(b""))
        if header.get(2, [0]) != [0]:
            raise ValueError("its numbers are big-endian")
        shards = header.get(1, [1])[0]
        return {
            key.decode(): _stored(prefix, key.decode(), entry=_message(value), shards=shards)
            for key, value in entries.items()
        }
    except FileNotFoundError as error:
        raise ConfigError(f"weights.path: {error.filename} is missing; download it again") from None
    except (AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ConfigError(
            f"weights.path: {index} is not a complete TensorFlow checkpoint ({reason}): download it again"
        ) from error


def _stored(prefix: Path, name: str, *, entry: Message, shards: int) -> LazyTensor:
    """Return a tensor, given its BundleEntryProto, after checking the size of its file."""
    if 7 in entry:
        raise ValueError(f"{name} is divided into slices")
    if (code := entry.get(1, [0])[0]) not in DTYPES:
        raise ValueError(f"{name} has the type {code}, which is not a floating-point type")
    dimensions = _message(entry.get(2, [b""])[0]).get(2, [])
    shape = tuple(_message(dimension).get(1, [0])[0] for dimension in dimensions)
    shard, start, size = (entry.get(field, [0])[0] for field in (3, 4, 5))
    path = Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}")
    dtype = DTYPES[code]
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {size} bytes for the shape {shape}")
    if start + size > path.stat().st_size:
        raise ValueError(f"{name} ends beyond {path.name}")
    return LazyTensor(name, shape, partial(in_bytes, path, start, dtype=dtype, shape=shape))


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a LevelDB table, in order."""
    footer = data[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("its last bytes are not those of a table")
    _, position = _handle(footer, 0)
    (offset, size), _ = _handle(footer, position)
    for _, value in _entries(_block(data, offset, size=size)):
        (offset, size), _ = _handle(value, 0)
        yield from _entries(_block(data, offset, size=size))


def _block(data: bytes, offset: int, *, size: int) -> bytes:
    """Return the content of a block after verifying its checksum."""
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + TRAILER]
    compression, checksum = struct.unpack("<BI", trailer)
    if _masked(crc32c(block + trailer[:1])) != checksum:
        raise ValueError("the checksum of a block is wrong")
    if compression:
        raise ValueError(f"a block is compressed, with method {compression}")
    return block


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block."""
    (restarts,) = struct.unpack("<I", block[-4:])
    end, position, key = len(block) - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + rest + length > end:
            raise ValueError("an entry ends beyond its block")
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    number = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a varint is longer than 64 bits")


def _message(data: bytes) -> Message:
    """Return the undecoded values of a protocol buffer message by field number."""
    fields: Message = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
        else:
            length = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                length, position = _varint(data, position)
            if length is None or position + length > len(data):
                raise ValueError("a message is cut short")
            value, position = data[position : position + length], position + length
        fields.setdefault(number, []).append(value)
    return fields


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reversed
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (RFC 3720, appendix B.4); slow, so for headers only."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    """Return the stored form of a checksum: rotated, plus a constant.

    Otherwise the CRC of data that ends with its own CRC would be the same for all data.
    """
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
