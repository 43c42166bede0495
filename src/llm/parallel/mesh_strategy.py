"""Lightning's strategy for models whose parameters are DTensors, with the same checkpoints as on a single device.

All devices gather each tensor and restore the model's row order. The first device writes it.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torchmetrics import Metric

from llm.checkpoints import sharded
from llm.dtensor import from_local, is_dtensor, local_slices, to_full, to_local
from llm.parallel.portable_checkpoints import PortableCheckpoints, parameters_of
from llm.parallel.tensor_parallel_plan import row_orders


class MeshStrategy(PortableCheckpoints, ModelParallelStrategy):
    """A strategy for a device mesh of `data_parallel` × `tensor_parallel`.

    Args:
        data_parallel: number of groups of devices; each group reads its own batches.
        tensor_parallel: number of devices in a group, which compute one batch together.
        sharded_checkpoint: write the shards of every device instead of one file.
    """

    def __init__(
        self, data_parallel: int, tensor_parallel: int, *, sharded_checkpoint: bool = False
    ) -> None:
        super().__init__(
            data_parallel, tensor_parallel, save_distributed_checkpoint=sharded_checkpoint
        )
        self.sharded_checkpoint = sharded_checkpoint

    def setup(self, trainer: Any) -> None:
        """Set up the model. Metrics count a batch once, even if several devices share it."""
        super().setup(trainer)
        for module in self.task.modules():
            if isinstance(module, Metric):
                module.process_group = self.metric_group

    @property
    def metric_group(self) -> Any:
        """The process group that metrics are reduced over: one device of each data-parallel group."""
        assert self.device_mesh is not None
        return self.device_mesh["data_parallel"].get_group()

    # Writing

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the parameters: whole on the first device, or sharded for a sharded checkpoint."""
        state, orders = self.task.state_dict(keep_vars=True), row_orders(self.task)
        tensors = {id(tensor): tensor for tensor in state.values()}  # tied parameters stay tied
        stored = {key: self._stored(tensor, orders.get(key)) for key, tensor in tensors.items()}
        return {name: stored[id(tensor)] for name, tensor in state.items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer, whole or sharded like the parameters."""
        state = dict[str, Any](ParallelStrategy.optimizer_state(self, optimizer))
        orders = self._orders_of(optimizer)
        state["state"] = {
            number: {name: self._stored(value, orders[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, sharded or from the first device."""
        if self.sharded_checkpoint:
            sharded.save_sharded(checkpoint, Path(filepath), **(storage_options or {}))
        else:
            ParallelStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def _stored(self, value: Any, order: Tensor | None) -> Any:
        """Return a value for the checkpoint: for one file, the whole tensor on the first device."""
        if self.sharded_checkpoint or not isinstance(value, Tensor):
            return value
        full = to_full(value.detach())
        if is_dtensor(value):  # an optimizer's step count is a plain tensor and has no rows
            full = in_model_order(full, order)
        return full.cpu() if self.is_global_zero else None

    # Reading

    def load_model_state_dict(
        self,
        checkpoint: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Load this device's shards of the parameters."""
        targets, orders = self.task.state_dict(keep_vars=True), row_orders(self.task)
        stored = checkpoint["state_dict"]
        if strict and (others := stored.keys() ^ set(self._stored_names())):
            raise ValueError(
                f"checkpoint and model do not have the same parameters: {sorted(others)}; "
                "resume with the model that it was written with"
            )
        with torch.no_grad():
            for name, target in targets.items():
                if name in stored:
                    shard = shard_of(stored[name], target, order=orders.get(id(target)))
                    to_local(target).copy_(shard)
        for module in self.task.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # discard gathered copies of the old values

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this device's shards of the optimizers' states."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters, orders = parameters_of(optimizer), self._orders_of(optimizer)
            state = {
                number: {
                    name: shard_like(value, parameters[number], order=orders[number])
                    for name, value in values.items()
                }
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    def _stored_names(self) -> Collection[str]:
        """Return the names of the parameters in a checkpoint."""
        return self.task.state_dict().keys()

    def _orders_of(self, optimizer: Optimizer) -> list[Tensor | None]:
        """Return the row order of each of an optimizer's parameters."""
        orders = row_orders(self.task)
        return [orders.get(id(parameter)) for parameter in parameters_of(optimizer)]


def in_model_order(tensor: Tensor, order: Tensor | None) -> Tensor:
    """Return the rows of a tensor in the model's order, given their order of `row_orders`."""
    return tensor if order is None else tensor[order.argsort().to(tensor.device)]


def shard_of(stored: Any, like: Tensor, *, order: Tensor | None) -> Tensor:
    """Return this device's shard of a stored tensor.

    Args:
        stored: a tensor, or one in a file that is read when it is sliced.
        like: a parameter that is sharded in the same way.
        order: the order of its rows, see `row_orders`.
    """
    if tuple(stored.shape) != tuple(like.shape):
        raise ValueError(
            f"a tensor of {tuple(stored.shape)} in the checkpoint does not fit {tuple(like.shape)}; "
            "resume with the model that it was written with"
        )
    rows = stored if order is None else stored[...][order]
    return rows[local_slices(like)]


def shard_like(stored: Any, parameter: Tensor, *, order: Tensor | None) -> Any:
    """Return a value of an optimizer's state, sharded like its parameter if it has that shape."""
    if not hasattr(stored, "shape"):
        return stored
    if tuple(stored.shape) != tuple(parameter.shape):
        return stored[...].clone()
    values = shard_of(stored, parameter, order=order)
    return from_local(values.to(to_local(parameter).device, copy=True), parameter)
