"""The memory of training, measured by a step on fake tensors, which have a shape but no data.

A model of any size is measured in seconds on any machine, without assumptions about the model: torch itself reports
what autograd, the optimizer and temporary tensors would allocate.

For a GPT-2-like Transformer with 16-bit activations, Korthikanti et al. 2022 ("Reducing activation recomputation",
equation 1) derive what autograd stores per layer: sbh (34 + 5as/h) bytes for s tokens, b rows, width h and a heads. The
5as/h are the attention scores, which fused attention does not store; 2 sbh of the 34 are dropout masks.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.config.build import config_errors_at
from llm.tasks.base import Batch, Task


class Memory(NamedTuple):
    """Bytes that training holds at one moment, by kind.

    Attributes:
        weights: parameters, buffers, and copies of them that the task stores.
        gradients: gradients of the trained parameters.
        optimizer: optimizer state.
        activations: tensors stored for the backward pass, and temporary tensors.
        logits: everything computed from the head on: logits, their logarithms and their gradients.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """The sum of all kinds."""
        return sum(self)


KINDS = Memory._fields


@dataclass
class AllocatedBlock:
    """A block of memory: kind, size in bytes, and the moments of allocation and release, as indices of `Timeline`."""

    kind: str
    size: int
    allocated: int
    released: int | None = None


@dataclass(frozen=True)
class Timeline:
    """The memory held at each moment of a training step.

    Attributes:
        live: bytes of each kind, (moments, kinds).
    """

    live: np.ndarray

    def peak(
        self, shares: Sequence[float] | float = 1.0, *, keeps_gradients: bool = False
    ) -> Memory:
        """Return the memory at the moment of the highest total.

        Args:
            shares: divisor of each kind on one of several devices.
            keeps_gradients: whether gradients are stored in buffers that are never released.
        """
        held = self.live / np.asarray(shares)
        if keeps_gradients:
            gradients = KINDS.index("gradients")
            held[:, gradients] = held[:, gradients].max()
        return Memory(*map(float, held[held.sum(axis=1).argmax()]))


class AllocationTracker(TorchDispatchMode):
    """A dispatch mode that records when each storage is allocated and released.

    Attributes:
        blocks: all storages.
        kind: the kind of tensors that are allocated from now on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[AllocatedBlock] = []
        self.kind = "activations"
        self._live: dict[int, AllocatedBlock] = {}  # by the storage's address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # A fake tensor has no value to read. 1.0 suits an optimizer's step number; False ends a `while` loop.
            return False if args[0].dtype == torch.bool else 1.0
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._record(leaf.untyped_storage())
        return result

    def _record(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._live:
            block = AllocatedBlock(self.kind, storage.nbytes(), allocated=len(self.blocks))
            self.blocks.append(block)
            self._live[storage._cdata] = block
            weakref.finalize(storage, self._release, storage._cdata).atexit = False

    def _release(self, address: int) -> None:
        self._live.pop(address).released = len(self.blocks)

    def assign_kind(self, kind: str, tensors: Iterable[object]) -> None:
        """Set the kind of existing tensors; other objects are skipped."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                block = self._live.get(tensor.untyped_storage()._cdata)
                if block is not None:
                    block.kind = kind

    def timeline(self) -> Timeline:
        """Return the memory after each allocation."""
        changes = np.zeros((len(self.blocks) + 1, len(KINDS)))
        for block in self.blocks:
            column = KINDS.index(block.kind)
            changes[block.allocated, column] += block.size
            if block.released is not None:
                changes[block.released, column] -= block.size
        return Timeline(changes.cumsum(axis=0))


class FakeTensors(FakeTensorMode):
    """torch's mode for fake tensors. Copying a model does not copy the mode, which its tensors refer to."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeTensors":
        return self


@contextmanager
def on_accelerator() -> Iterator[None]:
    """Set `is_cpu` of fake tensors to False, for modules with another implementation on a CPU.

    Fake tensors on a GPU need a torch that is built for one. A torch function mode cannot change the attribute: torch
    disables the mode in the backward pass, where checkpointing recomputes.
    """
    FakeTensor.is_cpu = property(lambda tensor: False)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del FakeTensor.is_cpu  # the attribute of the base class is visible again


def measure_step(
    make_task: Callable[[], Task],
    make_batch: Callable[[], Batch],
    *,
    dtype: torch.dtype,
    accumulate: int = 1,
    accelerator: str = "cpu",
) -> Timeline:
    """Measure the memory of a training step that starts with the optimizer state and gradients of an earlier step.

    The order is Lightning's: forward pass, release of the old gradients, backward pass, optimizer step.

    Args:
        make_task: makes the task with its model.
        make_batch: makes a micro-batch of one device.
        dtype: dtype of matrix products; autocast is used unless it is float32.
        accumulate: micro-batches per step.
        accelerator: the accelerator to plan for, `cpu` or another.
    """
    tracker = AllocationTracker()
    device = nullcontext() if accelerator == "cpu" else on_accelerator()
    with warnings.catch_warnings(), FakeTensors(), tracker, device:
        warnings.simplefilter("ignore")  # torch warns about tensors without an address
        tracker.kind = "weights"
        task = make_task()
        _track_logits(task, tracker)
        with config_errors_at("optimizer"):
            optimizer = task.configure_optimizers()
        _add_earlier_step(task, optimizer, tracker=tracker)
        for micro_batch in range(min(accumulate, 2)):  # further ones do not differ from the second
            tracker.kind = "activations"
            with torch.autocast("cpu", torch.bfloat16, dtype != torch.float32, cache_enabled=False):
                loss = task.step(make_batch())
            if micro_batch == 0:
                optimizer.zero_grad()
            loss.backward()
            tracker.assign_kind("gradients", (parameter.grad for parameter in task.parameters()))
            del loss
        tracker.kind = "activations"
        optimizer.step()
        return tracker.timeline()


def _add_earlier_step(task: Task, optimizer: Optimizer, *, tracker: AllocationTracker) -> None:
    """Allocate gradients and the optimizer state, as after an earlier step."""
    tracker.kind = "gradients"
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    tracker.kind = "activations"
    optimizer.step()
    states = optimizer.state.values()
    tracker.assign_kind("optimizer", (leaf for state in states for leaf in state.values()))


def _track_logits(task: Task, tracker: AllocationTracker) -> None:
    """Switch the kind to logits when the head begins, and back when its backward pass ends."""
    head = getattr(task.model, "head", None)
    if not isinstance(head, nn.Module):
        return

    def end(gradient: Tensor) -> None:
        tracker.kind = "activations"

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        tracker.kind = "logits"
        if inputs[0].requires_grad:
            inputs[0].register_hook(end)

    head.register_forward_pre_hook(begin)
