"""How much memory training takes: a step is run on tensors that have a shape and no contents.

Nothing is computed, so a model of any size is weighed in seconds on any machine, and nothing is
assumed of its parts: what autograd keeps, what the optimizer holds, and what lives for a moment only
is what torch itself would allocate.

For a Transformer of GPT-2's kind whose activations take 16 bits, Korthikanti et al. 2022 ("Reducing
activation recomputation", equation 1) count what autograd keeps of a layer by hand: sbh (34 + 5as/h) bytes
for s tokens, b rows, width h and a heads, of which the 5as/h are the scores of attention. Fused attention
does not keep those, and 2 sbh in the 34 are masks of dropout.
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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.tasks.base import Batch, Task


class Memory(NamedTuple):
    """Bytes that training holds at one moment, by what they are for.

    Attributes:
        weights: parameters, buffers, and copies of them that the task keeps.
        gradients: those of the trained parameters.
        optimizer: its states.
        activations: what the backward pass will ask for, and what lives for a moment only.
        logits: all that is computed from the head on: logits, their logarithms, their gradients.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


KINDS = Memory._fields
WHOLE = (1.0,) * len(KINDS)


@dataclass
class AllocatedBlock:
    """A piece of memory: how many bytes, what for, and between which moments it is held."""

    kind: str
    size: int
    born: int
    died: int | None = None


@dataclass(frozen=True)
class Timeline:
    """What is held at each moment of a training step.

    Attributes:
        live: bytes of each kind, (moments, kinds).
    """

    live: np.ndarray

    def peak(self, shares: Sequence[float] = WHOLE, *, keeps_gradients: bool = False) -> Memory:
        """The moment at which most is held.

        Args:
            shares: by what each kind is divided on one of several devices.
            keeps_gradients: whether they stay where they are when they are set to nothing, as buffers do.
        """
        held = self.live / np.asarray(shares)
        if keeps_gradients:
            gradients = KINDS.index("gradients")
            held[:, gradients] = held[:, gradients].max()
        return Memory(*map(float, held[held.sum(axis=1).argmax()]))


class AllocationTracker(TorchDispatchMode):
    """Writes down when each storage comes and when it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[AllocatedBlock] = []
        self.kind = "activations"
        self._held: dict[int, AllocatedBlock] = {}  # by the storage's address

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return fake_scalar(args[0])
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._held:
            block = AllocatedBlock(self.kind, storage.nbytes(), born=len(self.blocks))
            self.blocks.append(block)
            self._held[storage._cdata] = block
            weakref.finalize(storage, self._forget, storage._cdata).atexit = False

    def _forget(self, address: int) -> None:
        self._held.pop(address).died = len(self.blocks)

    def name(self, kind: str, tensors: Iterable[Tensor | None]) -> None:
        """Say what these tensors, which are there already, are for."""
        for tensor in tensors:
            block = None if tensor is None else self._held.get(tensor.untyped_storage()._cdata)
            if block is not None:
                block.kind = kind

    def switch(self, kind: str) -> None:
        """Say what is allocated from now on is for."""
        self.kind = kind

    def timeline(self) -> Timeline:
        """What was held at each moment: one for each storage that came."""
        changes = np.zeros((len(self.blocks) + 1, len(KINDS)))
        for block in self.blocks:
            column = KINDS.index(block.kind)
            changes[block.born, column] += block.size
            if block.died is not None:
                changes[block.died, column] -= block.size
        return Timeline(changes.cumsum(axis=0))


def fake_scalar(tensor: Tensor) -> float | bool:
    """What a tensor without contents says of them, as to an optimizer that asks for the step: the first.

    Nothing is true of them: who draws again for as long as a condition holds goes on at once.
    """
    return False if tensor.dtype == torch.bool else 1.0


class FakeTensors(FakeTensorMode):
    """torch's mode of tensors without contents; a model copied in it stays in it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeTensors":
        return self


@contextmanager
def on_accelerator() -> Iterator[None]:
    """Let tensors say that they are on no CPU, for parts that compute in another way there.

    Tensors without contents can lie on a GPU only where torch was built for one; so they lie on
    the CPU, and do as they would elsewhere. A mode of torch's functions would not do: torch sets it aside
    in the backward pass, where checkpointing computes again.
    """
    Tensor.is_cpu = property(lambda tensor: False)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        del Tensor.is_cpu  # that of the class above is there again


def measure_step(
    make_task: Callable[[], Task],
    make_batch: Callable[[], Batch],
    *,
    dtype: torch.dtype,
    accumulate: int = 1,
    accelerator: str = "cpu",
) -> Timeline:
    """Run a training step that finds the optimizer's states, and the gradients of the one before.

    Lightning's order: the forward pass, then the old gradients go, the backward pass, the optimizer.

    Args:
        make_task: makes the task with its model, ready to train; called where tensors have no contents.
        make_batch: makes what one device sees in a micro-batch, likewise.
        dtype: of matrix products; other than float32 it is autocast.
        accumulate: micro-batches of a step.
        accelerator: what it will run on, `cpu` or another.
    """
    ledger = AllocationTracker()
    place = nullcontext() if accelerator == "cpu" else on_accelerator()
    with warnings.catch_warnings(), FakeTensors(), ledger, place:
        warnings.simplefilter("ignore")  # of torch, about tensors that have no address
        ledger.switch("weights")
        task = make_task()
        _tell_logits(task, ledger)
        optimizer = task.configure_optimizers()
        _step_before(task, optimizer, ledger=ledger)
        for micro_batch in range(min(accumulate, 2)):  # the third is as the second
            ledger.switch("activations")
            with torch.autocast("cpu", torch.bfloat16, dtype != torch.float32, cache_enabled=False):
                loss = task.step(make_batch())
            if micro_batch == 0:
                optimizer.zero_grad()
            loss.backward()
            ledger.name("gradients", (parameter.grad for parameter in task.parameters()))
            del loss
        ledger.switch("activations")
        optimizer.step()
        return ledger.timeline()


def _step_before(task: Task, optimizer: Optimizer, *, ledger: AllocationTracker) -> None:
    """Leave what the end of an earlier step left: gradients, and the optimizer's states."""
    ledger.switch("gradients")
    for parameter in task.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    ledger.switch("activations")
    optimizer.step()
    states = (leaf for state in optimizer.state.values() for leaf in state.values())
    ledger.name("optimizer", (leaf for leaf in states if isinstance(leaf, Tensor)))


def _tell_logits(task: Task, ledger: AllocationTracker) -> None:
    """Have the ledger see where the head begins, and where its backward pass ends."""
    head = getattr(task.model, "head", None)
    if not isinstance(head, nn.Module):
        return

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ledger.switch("logits")
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: ledger.switch("activations"))

    head.register_forward_pre_hook(begin)
