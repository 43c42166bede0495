"""Where a run computes and in which precision: resolved once, printed, and saved with the run.

A `Strategy`, of which `llm.parallel` has several, divides a training step among devices.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn

from llm import distributed
from llm.precision import Precision, faster_precision

if TYPE_CHECKING:  # Lightning takes seconds to import, and a configuration's check does without it
    from lightning.pytorch.strategies import Strategy as LightningStrategy
    from torch.distributed.device_mesh import DeviceMesh


class MemoryDivisors(NamedTuple):
    """By what each kind of memory is divided on a rank, compared with a single device."""

    weights: float = 1
    gradients: float = 1
    optimizer: float = 1
    activations: float = 1
    logits: float = 1


class Strategy(ABC):
    """How several devices divide a training step among them.

    Attributes:
        is_sharded: whether no rank has the whole weights, so that all of them are needed to run the model.
        keeps_gradients: whether gradients have a place of their own, which stays when they are dropped.
        takes_fp16: whether it goes with float16 and the scaler that watches its gradients for overflows.
        casts_weights: whether weights are kept in `precision`, beside float32 copies for the optimizer.
    """

    is_sharded: bool = False
    keeps_gradients: bool = False
    takes_fp16: bool = True
    casts_weights: bool = False

    @abstractmethod
    def lightning(self, hardware: "Hardware") -> "LightningStrategy":
        """The strategy that Lightning's trainer is given."""

    def shard(self, model: nn.Module, mesh: "DeviceMesh") -> None:  # noqa: B027 - most do nothing
        """Divide a model's weights among the ranks of a mesh, in place."""

    def data_parallel(self, world: int) -> int:
        """How many of so many ranks read batches of their own."""
        return world

    def pieces(self, world: int) -> int:
        """How many equal parts so many ranks divide a batch into."""
        return self.data_parallel(world)

    @abstractmethod
    def shares(self, world: int) -> MemoryDivisors:
        """By what the memory that a step takes is divided on each of so many ranks, where all divides evenly."""

    def shares_of(self, model: nn.Module, world: int) -> MemoryDivisors:
        """The same for a model that `fits`, on the rank that has most of it; weights are not looked at."""
        return self.shares(world)

    def require(self) -> None:  # noqa: B027 - most need torch alone
        """Refuse a machine that lacks what the strategy stands on; a plan is made without it.

        Raises:
            ValueError: it does.
        """

    def check(self, hardware: "Hardware") -> None:
        """Refuse hardware, its devices counted, that this strategy does not work on.

        Raises:
            ValueError: it does not.
        """
        if hardware.precision == "fp16" and not self.takes_fp16:
            raise ValueError(
                "precision=fp16: divided weights train in bf16 or 32; use hardware.precision=bf16 or 32"
            )

    def fits(self, task: nn.Module, world: int) -> None:  # noqa: B027 - most divide anything
        """Refuse a task, or its `model`, that so many ranks cannot divide; weights are not looked at.

        Raises:
            ValueError: they cannot.
        """


@dataclass(frozen=True)
class Hardware:
    """The machine, or machines, that a run uses.

    Args:
        accelerator: `auto` takes a GPU (CUDA, then Apple's MPS) when there is one, else the CPU.
        devices: how many devices of each machine; `auto` is all its GPUs, or one process on the CPU.
        num_nodes: how many machines; each is told its number and where to meet by NODE_RANK, MASTER_ADDR
            and MASTER_PORT.
        strategy: how several devices divide the work; a single one is given none, whatever was chosen.
        precision: `bf16` or `fp16` (mixed), `32`, or `auto`: bf16 where it is measured faster.
        compile: compile the model and its loss with `torch.compile`.
        activation_checkpointing: recompute each block's activations in the backward pass to save memory.
        workers: data-loading processes of each rank; 0 loads in the training process.
        threads: CPU threads of each rank, or null: torch's own choice, and of several ranks each its share.

    Raises:
        ValueError: a number is out of range, or several devices have no strategy.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    strategy: Strategy | None = None
    precision: Precision = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    workers: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more")
        if self.strategy is None and (self.devices not in ("auto", 1) or self.num_nodes > 1):
            raise ValueError(
                f"devices={self.devices} on num_nodes={self.num_nodes} need a strategy; choose one with hardware=ddp"
            )
        if self.workers < 0:
            raise ValueError(
                f"workers={self.workers}: give 0 (load in the training process) or more"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(
                f"threads={self.threads}: give a number from 1 on, or null for torch's choice"
            )

    def place(self) -> "Hardware":
        """Count the devices and find the accelerator.

        Raises:
            ValueError: what is asked for is not there, or the strategy does not work on it.
        """
        accelerator = _available(self.accelerator)
        devices, num_nodes = self._counts(accelerator)
        placed = replace(self, accelerator=accelerator, devices=devices, num_nodes=num_nodes)
        # What was chosen is checked, though one device has no use for it.
        if self.strategy is not None:
            self.strategy.require()
            self.strategy.check(placed)
        return placed if placed.world > 1 else replace(placed, strategy=None)

    def _counts(self, accelerator: str) -> tuple[int, int]:
        """Devices of this machine and machines: as they were started, or as they are asked for."""
        there = torch.cuda.device_count() if accelerator == "cuda" else 1
        devices, num_nodes = there if self.devices == "auto" else self.devices, self.num_nodes
        world = distributed.world()
        if distributed.is_rank():
            started = world.local_size, world.size // world.local_size
            if self.devices not in ("auto", started[0]) or num_nodes not in (1, started[1]):
                raise ValueError(
                    f"devices={self.devices} on num_nodes={num_nodes}: {started[0]} processes were started on each "
                    f"of {started[1]} machines; ask for as many (hardware=ddp hardware.devices=auto), or start as many"
                )
            devices, num_nodes = started
        if devices > there and accelerator != "cpu":
            raise ValueError(
                f"devices={devices}: this process sees {there} of accelerator={accelerator}; "
                f"give {there} or fewer, or devices=auto"
            )
        if devices * num_nodes > 1 and self.strategy is None:
            raise ValueError(
                f"devices={self.devices}: {devices * num_nodes} devices need a strategy; choose one with "
                "hardware=ddp, or give devices=1"
            )
        return devices, num_nodes

    def resolve(self) -> "Hardware":
        """Replace every `auto` by what there is. Ranks meet here, for they have to agree on it.

        Raises:
            ValueError: what is asked for is not there.
        """
        placed = self.place()
        distributed.join_ranks(placed.accelerator)
        precision = self.precision
        if precision == "auto":
            measured = faster_precision(placed.accelerator) if distributed.is_first() else None
            precision = self.suited(distributed.broadcast(measured))
        if precision == "fp16" and placed.accelerator == "cpu":
            raise ValueError("hardware.precision=fp16 needs a GPU: use bf16 or 32 on the CPU")
        resolved = replace(placed, precision=precision, threads=self.threads or share_of_cores())
        if self.strategy is not None:
            self.strategy.check(resolved)
        return resolved

    def suited(self, fastest: Precision) -> Precision:
        """What `auto` becomes where this precision is the fastest: 32 for a strategy that does not take fp16."""
        takes_it = self.strategy is None or self.strategy.takes_fp16
        return fastest if takes_it or fastest != "fp16" else 32

    @property
    def world(self) -> int:
        """Processes of the run on all machines; of placed hardware only."""
        assert self.devices != "auto"
        return self.devices * self.num_nodes

    @property
    def lightning_precision(self) -> str:
        """The resolved precision in Lightning's words."""
        return {32: "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]


def share_of_cores() -> int | None:
    """This rank's CPU threads; None, torch's own choice, where it has the machine or was told a number."""
    ranks = distributed.world().local_size
    if ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, cores() // ranks)


def cores() -> int:
    """The cores that this process may use, which may be fewer than the machine has."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def _available(accelerator: str) -> str:
    has_mps = torch.backends.mps.is_available()
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if accelerator == "gpu":
        accelerator = "mps" if has_mps and not torch.cuda.is_available() else "cuda"
    if (accelerator == "cuda" and not torch.cuda.is_available()) or (
        accelerator == "mps" and not has_mps
    ):
        raise ValueError(
            f"hardware.accelerator={accelerator}: this machine has none; use hardware=cpu or auto"
        )
    return accelerator


def describe_hardware(hardware: Hardware) -> str:
    """One line for the start of a run: device, count, strategy, precision."""
    name = torch.cuda.get_device_name() if hardware.accelerator == "cuda" else hardware.accelerator
    devices = f"{hardware.devices} × {name}"
    if hardware.num_nodes > 1:
        devices = f"{hardware.num_nodes} machines × {devices}"
    strategy = [] if hardware.strategy is None else [type(hardware.strategy).__name__]
    extras = [word for word in ("compile", "activation_checkpointing") if getattr(hardware, word)]
    return ", ".join([devices, *strategy, f"precision {hardware.precision}", *extras])
