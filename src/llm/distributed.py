"""Which of several processes this is, and what they tell one another beside the training itself.

A process of a run on several devices is a rank. Ranks know each other by torchrun's environment
variables, whoever started them: torchrun, srun, or `llm train` itself. Gradients travel over the group
that training uses (NCCL between GPUs); what is said here goes from CPU to CPU, so that no GPU
waits, and patiently: tokenizing a corpus or sampling on one rank takes as long as it takes.
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
PATIENCE = timedelta(days=7)

T = TypeVar("T")


class World(NamedTuple):
    """A process among those of its run.

    Attributes:
        rank: its number among all; 0 is the one that writes and prints.
        size: how many there are.
        local_rank: its number among those of its machine, which is that of its device.
        local_size: how many its machine has.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def world() -> World:
    """This process, as the environment says; alone where it says nothing, or not all there is to say."""
    if not is_rank():
        return World()
    rank, local_rank, size, local_size = (int(os.environ[name]) for name in NAMES[:4])
    return World(rank, size, local_rank, local_size)


def is_rank() -> bool:
    """Whether somebody started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and all(name in os.environ for name in NAMES)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return world().rank == 0


# The group of this module's own, over gloo; None where the process is alone.
_group: Any = None


def join_ranks(accelerator: str) -> None:
    """Meet the other ranks, once; alone, do nothing.

    Args:
        accelerator: `cuda` or `cpu`: over what training will talk.
    """
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
    _group = distributed.new_group(backend="gloo", timeout=PATIENCE)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if _group is not None:
        distributed.barrier(_group)


def broadcast(value: Any) -> Any:
    """The first rank's value, on every rank."""
    if _group is None:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, group=_group)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank, on every rank; plain data and tensors of the CPU."""
    if _group is None:
        return [value]
    values: list[Any] = [None] * world().size
    distributed.all_gather_object(values, value, group=_group)
    return values


def gather_to_first(value: T, owner: int) -> T | None:
    """One rank's value on the first rank, None on the others; plain data and tensors of the CPU."""
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
    """This rank's of the values that `gather` gave to a run, perhaps one of another number of ranks.

    Then the first rank goes on with all of them, merged, and the others with None.
    """
    here = world()
    if len(gathered) == here.size:
        return gathered[here.rank]
    return merge(gathered) if here.rank == 0 else None


class MaxVote:
    """The largest number that any rank has named, without waiting for it.

    A vote that is cast at one step is counted at the next, when it has long arrived. So all ranks
    learn the same of the same step.
    """

    def __init__(self) -> None:
        self._votes: torch.Tensor | None = None
        self._under_way: Any = None

    def largest(self, number: int) -> int:
        """The largest of the numbers at the last call, and cast this one; alone, this one itself."""
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
    """Let one rank of each machine go through before its others, which find what it has made."""
    if world().local_rank > 0:
        barrier()
    yield
    if world().local_rank == 0:
        barrier()
