"""Lightning's strategy for models whose parameters are DTensors, with checkpoints of our own.

Lightning's strategy pickles checkpoints and stores an optimizer's state by names, which ties a run to one way of
sharding. Here a checkpoint is the same as that of one device, whichever strategy wrote it: the same names, the
same indices of an optimizer's parameters, rows in the model's own order.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torchmetrics import Metric

from llm.checkpoints import sharded
from llm.checkpoints.checkpoint_file import open_checkpoint
from llm.dtensor import from_local, is_dtensor, local_slices, to_full, to_local
from llm.parallel.tensor_parallel_plan import row_orders


class MeshStrategy(ModelParallelStrategy):
    """Devices in a mesh of `data_parallel` × `tensor_parallel`.

    Args:
        data_parallel: groups of devices that read batches of their own.
        tensor_parallel: devices of a group, which work on one batch together.
        in_parts: write sharded checkpoints instead of one file from the first device.
    """

    def __init__(self, data_parallel: int, tensor_parallel: int, *, in_parts: bool = False) -> None:
        super().__init__(data_parallel, tensor_parallel, save_distributed_checkpoint=in_parts)
        self.in_parts = in_parts

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning loads the optimizer's state as it does anywhere: by `load_optimizer_state_dict`."""
        return True

    def setup(self, trainer: Any) -> None:
        """Make metrics count a batch once if several devices share it."""
        super().setup(trainer)
        for module in self._module.modules():
            if isinstance(module, Metric):
                module.process_group = self._measuring

    @property
    def _measuring(self) -> Any:
        """Return the process group that metrics are reduced over: one device of each group."""
        assert self.device_mesh is not None
        return self.device_mesh["data_parallel"].get_group()

    # Writing

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's parameters: whole on the first device, or sharded for a sharded checkpoint."""
        return self._stored(self._module.state_dict(keep_vars=True), self._row_orders())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, whole or sharded like the parameters."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        state = optimizer.state_dict()
        orders = dict(enumerate(self._orders_of(optimizer)))
        state["state"] = {
            number: self._stored(values, dict.fromkeys(values, orders[number]))
            for number, values in state["state"].items()
        }
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint: every device its shards, or the first device everything."""
        if self.in_parts:
            sharded.save_sharded(checkpoint, Path(filepath), **(storage_options or {}))
        else:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def _stored(
        self, tensors: Mapping[str, Any], orders: Mapping[str, Tensor | None]
    ) -> dict[str, Any]:
        """Tensors by name as a checkpoint has them; all devices gather, and the first one keeps."""
        if self.in_parts:
            return dict(tensors)
        known: dict[int, Any] = {}  # tied tensors stay one
        for name, tensor in tensors.items():
            if id(tensor) not in known and isinstance(tensor, Tensor):
                gathered = to_full(tensor.detach())
                if is_dtensor(tensor):  # an optimizer's count of steps has no rows
                    gathered = in_own_order(gathered, orders.get(name))
                known[id(tensor)] = gathered.cpu() if self.is_global_zero else None
        return {name: known.get(id(tensor), tensor) for name, tensor in tensors.items()}

    # Reading

    def load_checkpoint(
        self,
        checkpoint_path: str | Path,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Read it, the large tensors but for what this device needs left where they are."""
        return open_checkpoint(Path(checkpoint_path))

    def load_model_state_dict(
        self,
        checkpoint: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Fill this device's parts of the module's parameters."""
        targets, orders = self._module.state_dict(keep_vars=True), self._row_orders()
        stored = checkpoint["state_dict"]
        if strict and stored.keys() != targets.keys():
            raise ValueError(
                f"the checkpoint holds other parameters: {sorted(stored.keys() ^ targets.keys())}"
            )
        with torch.no_grad():
            for name in stored:
                to_local(targets[name]).copy_(
                    part(stored[name], targets[name], order=orders.get(name))
                )
        for module in self._module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what was gathered of the old ones

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fill this device's parts of the optimizers' states."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = parameters_of(optimizer)
            orders = self._orders_of(optimizer)
            state = {
                number: {
                    name: shard_like(value, parameters[number], order=orders[number])
                    for name, value in values.items()
                }
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    # Names

    @property
    def _module(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module

    def _row_orders(self) -> dict[str, Tensor | None]:
        return dict(row_orders(self._module))

    def _orders_of(self, optimizer: Optimizer) -> list[Tensor | None]:
        """The order of the rows of each of an optimizer's parameters, by its number."""
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        orders = self._row_orders()
        return [orders.get(names[id(parameter)]) for parameter in parameters_of(optimizer)]


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """An optimizer's parameters in the order in which its state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def in_own_order(tensor: Tensor, order: Tensor | None) -> Tensor:
    """Return rows in an order of `row_orders` to the model's own order."""
    return tensor if order is None else tensor[order.argsort().to(tensor.device)]


def part(stored: Any, like: Tensor, *, order: Tensor | None) -> Tensor:
    """Return this device's shard of a stored tensor, if it is sharded like `like`.

    Args:
        stored: a tensor, or an object that reads a slice of one.
        like: a parameter.
        order: the order of its rows.
    """
    if tuple(stored.shape) != tuple(like.shape):
        raise ValueError(
            f"a tensor of {tuple(stored.shape)} in the checkpoint does not fit {tuple(like.shape)}"
        )
    if order is None:
        return stored[local_slices(like)]
    everything = tuple(slice(0, size) for size in like.shape)
    return stored[everything][order][local_slices(like)]


def shard_like(stored: Any, parameter: Tensor, *, order: Tensor | None) -> Any:
    """A value of an optimizer's state, divided as its parameter is if it has the parameter's shape."""
    if not hasattr(stored, "shape"):
        return stored
    if tuple(stored.shape) != tuple(parameter.shape):
        return stored[tuple(slice(0, size) for size in stored.shape)].clone()
    values = part(stored, parameter, order=order).to(to_local(parameter).device, copy=True)
    return from_local(values, parameter)
