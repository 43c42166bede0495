"""The hardware of a run: devices, precision, and the base class of the strategies in `llm.parallel`."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from llm import distributed
from llm.precision import Precision, faster_precision

if TYPE_CHECKING:  # Lightning takes three seconds to import, which generation does not need
    from lightning.pytorch.strategies import Strategy as LightningStrategy


class MemoryDivisors(NamedTuple):
    """The factors by which a rank needs less memory of each kind than a single device."""

    weights: float = 1
    gradients: float = 1
    optimizer: float = 1
    activations: float = 1
    logits: float = 1


class Strategy(ABC):
    """A way to divide a training step among several devices.

    Attributes:
        is_sharded: each rank has only a shard of the weights, so all ranks must run the model together.
        keeps_gradients: gradients are stored in buffers that are never released.
        takes_fp16: float16 with a gradient scaler is supported.
        casts_weights: weights are stored in `precision`, with float32 copies for the optimizer.
    """

    is_sharded: bool = False
    keeps_gradients: bool = False
    takes_fp16: bool = True
    casts_weights: bool = False

    @abstractmethod
    def lightning(self, hardware: "Hardware") -> "LightningStrategy":
        """Return the strategy for Lightning's trainer."""

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:  # noqa: B027 - most do nothing
        """Divide a model's weights among the ranks of a mesh, in place."""

    def data_parallel(self, world: int) -> int:
        """Return the number of data-parallel ranks among `world` ranks."""
        return world

    def batch_divisor(self, world: int) -> int:
        """Return the number of equal parts into which `world` ranks divide a batch."""
        return self.data_parallel(world)

    @abstractmethod
    def shares(self, world: int) -> MemoryDivisors:
        """Return the memory divisors for a model that `world` ranks divide evenly."""

    def shares_of(self, model: nn.Module, world: int) -> MemoryDivisors:
        """Return the memory divisors of the rank with the largest share of a model; weights are not read."""
        return self.shares(world)

    def require(self) -> None:  # noqa: B027 - most need torch alone
        """Raise a ValueError if this machine lacks libraries or devices that training, but not a plan, needs."""

    def check(self, hardware: "Hardware") -> None:
        """Raise a ValueError for hardware, with its devices counted, that the strategy does not support."""
        if hardware.precision == "fp16" and not self.takes_fp16:
            raise ValueError(
                "precision=fp16: sharded weights train in bf16 or 32; use hardware.precision=bf16 or 32"
            )

    def fits(self, task: nn.Module, world: int) -> None:  # noqa: B027 - most divide anything
        """Raise a ValueError for a task or model that `world` ranks cannot divide; weights are not read."""


@dataclass(frozen=True)
class Hardware:
    """The machines and devices that a run uses.

    Args:
        accelerator: `auto` is a GPU (CUDA, then Apple's MPS) if there is one, otherwise the CPU.
        devices: number of devices of each machine; `auto` is all its GPUs, or one process on the CPU.
        num_nodes: number of machines. NODE_RANK, MASTER_ADDR and MASTER_PORT give each machine its number and the
            address of machine 0.
        strategy: how several devices divide a training step; a single device uses none.
        precision: `bf16` or `fp16` (mixed), `32`, or `auto`: bf16 if it is measured to be faster.
        compile: compile the model and its loss with `torch.compile`.
        activation_checkpointing: recompute each block's activations in the backward pass to save memory.
        workers: data-loading processes of each rank; 0 loads in the training process.
        threads: CPU threads of each rank; null is torch's default, or an equal share of the cores for several ranks.

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
        for name, least, remedy in (
            ("devices", 1, "give 1 or more"),
            ("num_nodes", 1, "give 1 or more"),
            ("workers", 0, "give 0 (load in the training process) or more"),
            ("threads", 1, "give 1 or more, or null for torch's default"),
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name}={value}: {remedy}")
        if self.strategy is None and (self.devices not in ("auto", 1) or self.num_nodes > 1):
            raise ValueError(
                f"devices={self.devices} on num_nodes={self.num_nodes} need a strategy; choose one with hardware=ddp"
            )

    def place(self) -> "Hardware":
        """Count the devices and find the accelerator.

        Raises:
            ValueError: the requested devices are not available, or the strategy does not support them.
        """
        accelerator = available_accelerator(self.accelerator)
        devices, num_nodes = self._counts(accelerator)
        placed = replace(self, accelerator=accelerator, devices=devices, num_nodes=num_nodes)
        # Also checked for a single device, although that does not use a strategy.
        if self.strategy is not None:
            self.strategy.require()
            self.strategy.check(placed)
        return placed if placed.world > 1 else replace(placed, strategy=None)

    def _counts(self, accelerator: str) -> tuple[int, int]:
        """Return the numbers of devices per machine and of machines: those of the started ranks, or as requested."""
        available = torch.cuda.device_count() if accelerator == "cuda" else 1
        devices, num_nodes = available if self.devices == "auto" else self.devices, self.num_nodes
        world = distributed.world()
        if distributed.is_rank():
            started = world.local_size, world.size // world.local_size
            if self.devices not in ("auto", started[0]) or num_nodes not in (1, started[1]):
                raise ValueError(
                    f"devices={self.devices} on num_nodes={num_nodes}: {started[0]} processes were started on each "
                    f"of {started[1]} machines; request the same (hardware=ddp hardware.devices=auto), or start "
                    "as many processes"
                )
            devices, num_nodes = started
        if devices > available and accelerator != "cpu":
            raise ValueError(
                f"devices={devices}: this process sees {available} of accelerator={accelerator}; "
                f"give {available} or fewer, or devices=auto"
            )
        if devices * num_nodes > 1 and self.strategy is None:
            raise ValueError(
                f"devices={self.devices}: {devices * num_nodes} devices need a strategy; choose one with "
                "hardware=ddp, or give devices=1"
            )
        return devices, num_nodes

    def resolve(self) -> "Hardware":
        """Replace every `auto` by a value. The ranks connect, because they must agree on the values.

        Raises:
            ValueError: the requested devices are not available.
        """
        placed = self.place()
        distributed.join_ranks(placed.accelerator)

        def measure() -> Precision:
            here = faster_precision(placed.accelerator) if distributed.is_first() else None
            return distributed.broadcast(here)

        precision = self.choose_precision(measure)
        if precision == "fp16" and placed.accelerator == "cpu":
            raise ValueError("precision=fp16 needs a GPU: use bf16 or 32 on the CPU")
        return replace(placed, precision=precision, threads=self.threads or share_of_cores())

    def choose_precision(self, measure: Callable[[], Precision]) -> Precision:
        """Return the requested precision; for `auto` the fastest by `measure`, or 32 if fp16 is not supported."""
        if self.precision != "auto":
            return self.precision
        fastest = measure()
        takes_it = self.strategy is None or self.strategy.takes_fp16
        return fastest if takes_it or fastest != "fp16" else 32

    @property
    def world(self) -> int:
        """Number of processes on all machines, if the devices are counted."""
        assert self.devices != "auto"
        return self.devices * self.num_nodes

    @property
    def lightning_precision(self) -> str:
        """The resolved precision as Lightning names it."""
        return {32: "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[self.precision]


def share_of_cores() -> int | None:
    """Return this rank's CPU threads; None (torch's default) for a single rank or if OMP_NUM_THREADS is set."""
    ranks = distributed.world().local_size
    if ranks == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, cores() // ranks)


def cores() -> int:
    """Return the number of cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def available_accelerator(accelerator: str) -> str:
    """Return the accelerator for `auto` or `gpu`, or the requested one.

    Raises:
        ValueError: this machine does not have it.
    """
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    available = [name for name, backend in backends.items() if backend.is_available()]
    if accelerator == "auto":
        return next(iter(available), "cpu")
    if accelerator == "gpu":
        accelerator = next(iter(available), "cuda")
    if accelerator not in ("cpu", *available):
        raise ValueError(
            f"hardware.accelerator={accelerator}: this machine has none; use hardware=cpu or auto"
        )
    return accelerator


def describe_hardware(hardware: Hardware) -> str:
    """Return one line about the devices, the strategy and the precision."""
    name = torch.cuda.get_device_name() if hardware.accelerator == "cuda" else hardware.accelerator
    devices = f"{hardware.devices} × {name}"
    if hardware.num_nodes > 1:
        devices = f"{hardware.num_nodes} machines × {devices}"
    strategy = [] if hardware.strategy is None else [type(hardware.strategy).__name__]
    extras = [word for word in ("compile", "activation_checkpointing") if getattr(hardware, word)]
    return ", ".join([devices, *strategy, f"precision {hardware.precision}", *extras])
