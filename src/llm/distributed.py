"""The ranks of a run, and their communication outside of training steps.

A rank is a process of a run on several devices, started by torchrun, srun or `llm train`. Ranks find each other by
torchrun's environment variables. The functions here communicate between CPUs, in a separate process group, so that no
GPU waits. Its timeout is long, because tokenizing a corpus or sampling on one rank may take hours.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(days=7)

T = TypeVar("T")


class World(NamedTuple):
    """The rank of this process, and the number of ranks.

    Attributes:
        rank: its rank among all; rank 0 writes and prints.
        size: number of ranks.
        local_rank: its rank among those on its machine, which is also the index of its device.
        local_size: number of ranks on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def world() -> World:
    """Return this process's rank from the environment; the default is a single process."""
    if not is_rank():
        return World()
    rank, local_rank, size, local_size = (int(os.environ[name]) for name in NAMES[:4])
    return World(rank, size, local_rank, local_size)


def is_rank() -> bool:
    """Return whether this process was started as a rank."""
    return "TORCHELASTIC_RUN_ID" in os.environ and all(name in os.environ for name in NAMES)


def is_first() -> bool:
    """Return whether this process is rank 0, which writes and prints."""
    return world().rank == 0


# This module's process group, over gloo; None for a single process.
_group: Any = None


def join_ranks(accelerator: str) -> None:
    """Connect to the other ranks, once. `accelerator` selects the backend of training: NCCL for `cuda`."""
    global _group
    if _group is not None or world().size == 1:
        return
    if not distributed.is_initialized():
        device = None
        if accelerator == "cuda":
            device = torch.device("cuda", world().local_rank)
            torch.cuda.set_device(device)
        backend = "nccl" if accelerator == "cuda" else "gloo"
        distributed.init_process_group(backend, device_id=device)
        atexit.register(_leave)
    _group = distributed.new_group(backend="gloo", timeout=TIMEOUT)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every rank has called this."""
    if _group is not None:
        distributed.barrier(_group)


def broadcast(value: Any) -> Any:
    """Return the first rank's value on every rank."""
    if _group is None:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, group=_group)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in order, on every rank. Values are plain data or CPU tensors."""
    if _group is None:
        return [value]
    values: list[Any] = [None] * world().size
    distributed.all_gather_object(values, value, group=_group)
    return values


def gather_to_first(value: T, owner: int) -> T | None:
    """Return the value of `owner` on the first rank, and None on the others. It is plain data or CPU tensors."""
    here = world().rank
    if owner == 0 or _group is None:
        return value if here == 0 else None
    if here == owner:
        distributed.send_object_list([value], dst=0, group=_group)
    values: list[Any] = [None]
    if here == 0:
        distributed.recv_object_list(values, src=owner, group=_group)
    return values[0]


def state_of_this_rank(gathered: Sequence[T], merge: Callable[[Sequence[T]], T]) -> T | None:
    """Return this rank's value among those that `gather` returned.

    If the number of ranks has changed since, the first rank gets all values merged, and the others get None.
    """
    here = world()
    if len(gathered) == here.size:
        return gathered[here.rank]
    return merge(gathered) if here.rank == 0 else None


class MaxVote:
    """The maximum of a number over all ranks, without waiting.

    The reduction is asynchronous and read at the next step, at which all ranks get the same result.
    """

    def __init__(self) -> None:
        self._votes: torch.Tensor | None = None
        self._under_way: Any = None

    def largest(self, number: int) -> int:
        """Submit a number, and return the maximum of the previous call; a single process returns the number."""
        if _group is None:
            return number
        before = 0
        if self._votes is not None:
            self._under_way.wait()
            before = int(self._votes)
        self._votes = torch.tensor(number)
        self._under_way = distributed.all_reduce(
            self._votes, distributed.ReduceOp.MAX, group=_group, async_op=True
        )
        return before


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Run the block on one rank of each machine before the others, which then find its files."""
    if world().local_rank > 0:
        barrier()
    yield
    if world().local_rank == 0:
        barrier()
