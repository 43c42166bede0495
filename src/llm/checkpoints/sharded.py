"""Sharded checkpoints: a folder with the shards of every device.

    last.ckpt/
      index.json                      each large tensor: its shape, and which file contains which shard
      7-00000-of-00002.safetensors    the shards of device 0 of 2, in the 7th save
      7-00001-of-00002.safetensors
      7.pt                            everything else: progress, random states, metrics; plain data
      previous.json                   the index of the previous save, whose files are kept
      sha256.json                     digests of the indexes, which contain those of the files

The index defines the checkpoint. A save writes new files beside the old ones, replaces the index atomically and
deletes the files that are in no index. If a save is killed, the old index and all its files remain. (The index of
torch's sharded format is a pickle, which can execute code.)

A folder may be untrusted or incomplete: the index may only name files of the folder, its shards must cover each
tensor without a gap, and memory is allocated only after the sizes of the files are known.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm import distributed
from llm.checkpoints.checksums import (
    DamagedCheckpointError,
    flush,
    remove_checkpoint,
    replace,
    replacing_folder,
    require_digest,
    verified,
    write_digests,
)
from llm.config.reading import read_bytes
from llm.dtensor import is_dtensor, local_slices, to_local
from llm.files import sha256_of_file, stored_archive
from llm.runs import parts_of, previous_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

INDEX = "index.json"
PREVIOUS = "previous.json"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*FLOATS, *INTEGERS)}
Key = tuple[str | int, ...]  # the path to a value in nested dictionaries and lists
Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Shard:
    """A shard of a tensor in a file."""

    file: str
    offsets: list[int]
    shape: list[int]

    @property
    def slices(self) -> Slices:
        """Return its slices of the whole tensor."""
        both = zip(self.offsets, self.shape, strict=True)
        return tuple(slice(offset, offset + size) for offset, size in both)

    def common(self, slices: Slices) -> list[tuple[int, int]] | None:
        """Return the bounds of the overlap with `slices` in each dimension; None if it is empty."""
        bounds = [
            (max(s.start, offset), min(s.stop, offset + size))
            for s, offset, size in zip(slices, self.offsets, self.shape, strict=True)
        ]
        return bounds if all(start < stop for start, stop in bounds) else None


@dataclass
class ShardFiles:
    """The files of an index, each verified when it is first read."""

    index: Path
    digests: Mapping[str, str]
    _verified: set[str] = field(default_factory=set)

    def path(self, name: str) -> Path:
        """Return the path of a file after verifying it; raise DamagedCheckpointError if it is damaged."""
        path = self.index.with_name(name)
        if name not in self._verified:
            require_digest(path, [self.digests[name]], record=self.index.name)
            self._verified.add(name)
        return path

    def require(self, shard: Shard, name: str) -> None:
        """Require that a file contains a shard, without reading it.

        Raises:
            DamagedCheckpointError: the file does not contain it.
        """
        path = self.path(shard.file)
        try:
            with safe_open(path, "pt") as file:
                found = file.get_slice(name).get_shape()
        except SafetensorError as error:
            raise DamagedCheckpointError(f"{path} is damaged: {error}") from error
        if found != shard.shape:
            raise DamagedCheckpointError(
                f"{path} is damaged: {name} has shape {found} there and {shard.shape} in {INDEX}"
            )


@dataclass(frozen=True)
class ShardedTensor:
    """A sharded tensor in files. Slicing it reads only the values in the slices."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    shards: list[Shard]
    files: ShardFiles

    def __getitem__(self, slices: Slices | EllipsisType) -> Tensor:
        """Return the values in the slices, one per dimension; all for `...`."""
        if slices is ...:
            slices = tuple(slice(0, size) for size in self.shape)
        found = [(shard, shard.common(slices)) for shard in self.shards]
        needed = [(shard, bounds) for shard, bounds in found if bounds is not None]
        for shard, _ in needed:  # before memory is allocated
            self.files.require(shard, self.name)
        result = torch.empty([s.stop - s.start for s in slices], dtype=self.dtype)
        for shard, bounds in needed:
            here = _relative(bounds, [s.start for s in slices])
            there = _relative(bounds, shard.offsets)
            with safe_open(self.files.path(shard.file), "pt") as file:
                result[here] = (
                    file.get_slice(self.name)[there] if there else file.get_tensor(self.name)
                )
        return result

    def read(self) -> Tensor:
        """Return the whole tensor."""
        return self[...]


def _relative(bounds: list[tuple[int, int]], to: list[int]) -> Slices:
    return tuple(slice(a - o, b - o) for (a, b), o in zip(bounds, to, strict=True))


# Reading


@dataclass(frozen=True)
class Index:
    """The content of `index.json`.

    Attributes:
        save: number of the save.
        rest: the file of everything except sharded tensors.
        files: all files.
        tensors: the sharded tensors, each with its keys in the checkpoint.
    """

    save: int
    rest: str
    files: ShardFiles
    tensors: list[tuple[ShardedTensor, list[Key]]]

    def verify(self) -> None:
        """Verify all files by reading them.

        Raises:
            DamagedCheckpointError: a file is damaged.
        """
        for name in self.files.digests:
            self.files.path(name)

    def read(self) -> dict[str, Any]:
        """Return the checkpoint, with a `ShardedTensor` for each sharded tensor.

        Raises:
            DamagedCheckpointError: a file is damaged, or the index does not fit it.
        """
        rest = stored_archive(self.files.path(self.rest))
        checkpoint = torch.load(rest, map_location="cpu", weights_only=True)
        with _damaged(self.files.index):
            for tensor, keys in self.tensors:
                for key in keys:
                    _put(checkpoint, key, value=tensor)
        return checkpoint


def index_of(path: Path) -> Path | None:
    """Return the index of a sharded checkpoint (its folder, or its previous index); None for a file."""
    if path.is_dir():
        return path / INDEX
    return path if path.name == PREVIOUS else None


def read_index(path: Path) -> Index:
    """Return the index of a sharded checkpoint after checking it.

    Raises:
        FileNotFoundError: the index does not exist.
        DamagedCheckpointError: the index is damaged or not valid.
    """
    with _damaged(path):
        return _parsed(json.loads(read_bytes(verified(path))), path)


@contextmanager
def _damaged(index: Path) -> Iterator[None]:
    """Turn errors of reading an index into DamagedCheckpointError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"it has no key {error}" if isinstance(error, KeyError) else error
        raise DamagedCheckpointError(f"{index} is damaged: {what}") from error


def _parsed(index: Any, path: Path) -> Index:
    """Return a valid index; raise ValueError, LookupError or TypeError if it is not."""
    files = ShardFiles(path, index["files"])
    for name in files.digests:
        _require(
            re.fullmatch(r"\w[\w.-]*", name), f"{name!r} is not a name of a file of the folder"
        )
    _require(type(index["save"]) is int, f"save {index['save']!r} is not a number")
    _require(index["rest"] in files.digests, f"no digest of {index['rest']}")
    tensors = [
        (_tensor(entry, files), [tuple(key) for key in entry["keys"]]) for entry in index["tensors"]
    ]
    return Index(index["save"], index["rest"], files, tensors)


def _tensor(entry: Any, files: ShardFiles) -> ShardedTensor:
    """Return a sharded tensor after checking that its shards lie within it, are disjoint and cover it."""
    name, shape, shards = entry["name"], entry["shape"], [Shard(**p) for p in entry["parts"]]
    stored = [sizes for shard in shards for sizes in (shard.offsets, shard.shape)]
    for sizes in (shape, *stored):
        are_sizes = len(sizes) == len(shape) and all(type(n) is int and n >= 0 for n in sizes)
        _require(are_sizes, f"{name}: {sizes} are not sizes of a tensor")
    _require(entry["dtype"] in DTYPES, f"{name}: unknown dtype {entry['dtype']!r}")
    for shard in shards:
        _require(shard.file in files.digests, f"{name}: no digest of {shard.file}")
        within = all(s.stop <= size for s, size in zip(shard.slices, shape, strict=True))
        _require(within, f"{name}: a shard ends beyond the shape {shape}")
    _require(not _overlap(shards), f"{name}: shards overlap")
    missing = math.prod(shape) - sum(math.prod(shard.shape) for shard in shards)
    _require(missing == 0, f"{name}: the shards do not contain {missing} elements")
    return ShardedTensor(name, tuple(shape), DTYPES[entry["dtype"]], shards, files)


def _overlap(shards: Sequence[Shard]) -> bool:
    """Return whether two shards overlap. In sorted order, only those that begin before the end of a shard can."""
    ordered = sorted(shards, key=lambda shard: shard.offsets)
    for number, shard in enumerate(ordered, 1):
        end = [s.stop for s in shard.slices[:1]]
        after = takewhile(lambda other, end=end: other.offsets[:1] <= end, ordered[number:])
        if any(shard.common(other.slices) is not None for other in after):
            return True
    return False


def _require(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def consolidated(checkpoint: Any, device: Any = "cpu") -> Any:
    """Return the checkpoint with whole tensors; a tensor that has several keys is read once."""
    known: dict[int, Tensor] = {}

    def read(value: Any) -> Any:
        if isinstance(value, ShardedTensor):
            if id(value) not in known:
                known[id(value)] = value.read().to(device)
            return known[id(value)]
        if isinstance(value, dict):
            return {key: read(each) for key, each in value.items()}
        return [read(each) for each in value] if isinstance(value, list) else value

    return read(checkpoint)


# Writing


def save_sharded(checkpoint: dict[str, Any], path: Path, *, keeps_previous: bool = False) -> None:
    """Write a sharded checkpoint; all devices must call this together.

    Args:
        checkpoint: nested dictionaries and lists of tensors and plain data. Each device writes its shards
            of every DTensor, the first one also everything else.
        path: the folder, on a disk shared by all devices.
        keeps_previous: whether to keep the replaced checkpoint, for `fall_back`.
    """
    rank, size, *_ = distributed.world()
    folder, number = distributed.broadcast(_prepare(path) if rank == 0 else None)
    rest, tensors = _split(checkpoint)
    file = folder / f"{number}-{rank:05}-of-{size:05}.safetensors"
    mine = {name: tensor for name, (tensor, _) in tensors.items() if _writes(tensor)}
    save_file({name: to_local(t).detach().cpu().contiguous() for name, t in mine.items()}, file)
    flush(file)
    shards = {name: asdict(_shard(file.name, tensor)) for name, tensor in mine.items()}
    written = distributed.gather((file.name, sha256_of_file(file), shards))
    if rank == 0:
        entries = [
            {
                "name": name,
                "keys": keys,
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "parts": [found[name] for *_, found in written if name in found],
            }
            for name, (tensor, keys) in tensors.items()
        ]
        rest_file = folder / f"{number}.pt"
        torch.save(rest, rest_file)
        flush(rest_file)
        digests = {rest_file.name: sha256_of_file(rest_file)}
        digests |= {name: digest for name, digest, _ in written}
        index = {"save": number, "rest": rest_file.name, "files": digests, "tensors": entries}
        _commit(folder, index, keeps_previous=keeps_previous)
        with replacing_folder(path, is_other_kind=folder != path):
            folder.replace(path)
        # The folder itself has a digest too, so that its loss is noticed.
        write_digests(path, [sha256_of_file(path / INDEX)])
        if previous_of(path).exists():  # left from when the checkpoint was a file
            remove_checkpoint(previous_of(path))
    distributed.barrier()


def _prepare(path: Path) -> tuple[Path, int]:
    """Create the folder to write in, and return it with the number of this save."""
    folder = parts_of(path) if path.is_file() else path
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    return folder, read_index(index).save + 1 if index.is_file() else 1


def _commit(folder: Path, index: dict[str, Any], *, keeps_previous: bool) -> None:
    """Write the index, then delete the files that are in no index."""
    partial = folder / f".{INDEX}"
    partial.write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    flush(partial)
    previous = folder / PREVIOUS
    replace(partial, folder / INDEX, previous=previous if keeps_previous else None)
    if not keeps_previous:
        remove_checkpoint(previous)
    kept = {*index["files"], *(read_index(previous).files.digests if previous.is_file() else ())}
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.pt")]:
        if old.name not in kept:
            old.unlink()


# Nested dictionaries and lists


def _split(checkpoint: dict[str, Any]) -> "tuple[Any, dict[str, tuple[DTensor, list[Key]]]]":
    """Return everything except DTensors, and the DTensors by name, each with its keys."""
    tensors: dict[str, tuple[DTensor, list[Key]]] = {}
    names: dict[int, str] = {}

    def rest(value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {k: rest(v, (*key, k)) for k, v in value.items() if not found(v, (*key, k))}
        if isinstance(value, list):
            return [rest(v, (*key, i)) for i, v in enumerate(value)]
        return value

    def found(value: Any, key: Key) -> bool:
        if is_dtensor(value):
            name = names.setdefault(id(value), ".".join(map(str, key)))
            tensors.setdefault(name, (value, []))[1].append(key)
        return is_dtensor(value)

    return rest(checkpoint, ()), tensors


def _put(tree: Any, key: Sequence[str | int], *, value: Any) -> None:
    *way, last = key
    for step in way:
        tree = tree[step]
    _require(
        isinstance(tree, dict | list), f"{'.'.join(map(str, key))} is not a key of the checkpoint"
    )
    tree[last] = value


def _writes(tensor: "DTensor") -> bool:
    """Return whether this device writes its shard: it is not empty, and no earlier device has the same one."""
    coordinates = tensor.device_mesh.get_coordinate() or []
    copies = [c for c, p in zip(coordinates, tensor.placements, strict=True) if p.is_replicate()]
    return to_local(tensor).numel() > 0 and not any(copies)


def _shard(file: str, tensor: "DTensor") -> Shard:
    where = local_slices(tensor)
    return Shard(file, [s.start for s in where], [s.stop - s.start for s in where])
