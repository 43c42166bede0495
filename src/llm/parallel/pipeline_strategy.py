"""Lightning's strategy for a model divided into stages, trained by torch's pipeline schedules.

A schedule runs forward and backward passes together, but Lightning calls them separately: first the loss, then
`zero_grad`, then the backward pass. So the task's step is an autograd function. Its forward pass runs the schedule,
which also computes the gradients, and its backward pass returns them, scaled. Accumulation, clipping and hooks in
Lightning work as on a single device.

Checkpoints have the parameter names and numbers of the whole model. The first device gathers the values one by one and
writes them.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, cast

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.optim import Optimizer

from llm import distributed
from llm.config.build import config_errors_at
from llm.parallel.mesh_strategy import MeshStrategy
from llm.parallel.pipeline_stage import Call, Stage
from llm.tasks.base import Batch, Groups
from llm.tasks.pretraining import Pretraining

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class PipelineStrategy(MeshStrategy):
    """A strategy for a chain of devices, each with a stage of the model.

    Args:
        world: number of devices.
        schedule: order of the forward and backward passes.
        microbatches: number of equal parts of a batch.
        compiled: whether each stage is compiled.
    """

    def __init__(
        self, world: int, schedule: Literal["gpipe", "1f1b"], *, microbatches: int, compiled: bool
    ) -> None:
        super().__init__(1, world)
        self.schedule: Literal["gpipe", "1f1b"] = schedule
        self.microbatches = microbatches
        self.compiled = compiled
        self.stage: Stage | None = None

    @property
    def stream(self) -> int:
        """The number of this device's random stream: each stage draws its own numbers."""
        return self.global_rank

    def setup(self, trainer: Any) -> None:
        """Divide the model once; Lightning calls this for each fit and test."""
        if self.stage is None:
            with config_errors_at("hardware.strategy"):
                self._divide()
        super().setup(trainer)

    def _divide(self) -> None:
        # All stages reduce metrics, but only the last one computes them.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        task = cast(Pretraining, self.task)  # ensured by `Pipeline.fits`
        self.stage = Stage(task.model, index=self.global_rank, count=self.world_size)
        self.names = ParameterNames(self.stage, task.parameter_groups)
        self.work = StageStep(
            task,
            self.stage,
            schedule=self.schedule,
            microbatches=self.microbatches,
            precision=self.precision_plugin.forward_context,
        )
        if self.compiled:
            self.work.compute = torch.compile(self.work.compute)
        task.step = self.work.step
        task.parameter_groups = self.names.own_groups
        task.trained_names = self.names.trained
        task.peers = torch.distributed.group.WORLD

    @property
    def metric_group(self) -> Any:
        """The process group that metrics are reduced over: all devices."""
        return torch.distributed.group.WORLD

    # Steps

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Clear the gradients of the previous step first: the forward pass computes the new ones."""
        if self.task.begins_step(batch_idx):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        return super().training_step(batch, batch_idx)

    def validation_step(self, *args: Any) -> None:
        """Run the task's step on the last stage; the other stages send it their states."""
        self._evaluate(super().validation_step, *args)

    def test_step(self, *args: Any) -> None:
        """Run the task's step on the last stage; the other stages send it their states."""
        self._evaluate(super().test_step, *args)

    def _evaluate(self, step: Callable[..., Any], batch: Batch, *args: Any) -> None:
        assert self.stage is not None
        self.stage.shares_logits = False
        try:
            if self.stage.is_last:
                step(batch, *args)
            else:
                with self.work.precision():
                    self.work.task.logits(batch)
        finally:
            self.stage.shares_logits = True

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """Sum the gradients of a tied matrix before the step, and copy the new matrix to the last stage after it."""
        stage = self.stage
        assert stage is not None

        def closure_with_tied_gradient() -> Any:
            result = closure()
            add_gradients(stage)
            return result

        result = super().optimizer_step(optimizer, closure_with_tied_gradient, model, **kwargs)
        update_copy(stage)
        return result

    # Checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole model's parameters by name: values on the first device, None on the others."""
        return self.names.whole_state(self.task.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer over the whole model, on the first device."""
        return self.names.whole_optimizer(ParallelStrategy.optimizer_state(self, optimizer))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the state of this stage's parameters."""
        own = [self.names.own_optimizer(stored) for stored in checkpoint["optimizer_states"]]
        super().load_optimizer_state_dict({"optimizer_states": own})

    def _stored_names(self) -> Collection[str]:
        return self.names.tied


@dataclass(eq=False)
class StageStep:
    """The training step of a stage.

    Attributes:
        task: the task whose model is divided.
        stage: this device's stage.
        schedule: order of the forward and backward passes.
        microbatches: number of equal parts of a batch.
        precision: returns the context in which the model computes.
    """

    task: Pretraining
    stage: Stage
    schedule: Literal["gpipe", "1f1b"]
    microbatches: int
    precision: Callable[[], Any]

    def __post_init__(self) -> None:
        # The class's step: the task's own attribute may be compiled, and `StageStep.step` replaces it.
        step = partial(type(self.task).step, self.task)
        self.compute = step if self.stage.is_last else self.task.logits
        self._shape: torch.Size | None = None
        self._schedule: Any = None
        self._targets: Tensor | None = None

    def step(self, batch: Batch) -> Tensor:
        """Return the loss of a batch on every device, with gradients for this stage's parameters."""
        parameters = [p for p in self.stage.model.parameters() if p.requires_grad]
        return PrecomputedLoss.apply(lambda: self._run(batch, parameters), *parameters)

    def _run(
        self, batch: Batch, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the loss and the gradients. Gradients accumulated from earlier batches are not changed."""
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._targets = self.task.weight(batch)
        losses: list[Tensor] = []
        device = batch["tokens"].device
        # The schedule also runs the backward pass, which must not be under autocast.
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            schedule = self._schedule_for(batch["tokens"])
            schedule.step(**batch, target=batch["tokens"], losses=losses, return_outputs=False)
        gradients = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        loss = torch.stack(losses).sum().detach() if losses else torch.zeros((), device=device)
        torch.distributed.broadcast(loss, self.stage.count - 1)
        return loss, gradients

    def _schedule_for(self, tokens: Tensor) -> Any:
        """Return the schedule with buffers for batches of this shape."""
        if tokens.shape == self._shape:
            return self._schedule
        self._shape = tokens.shape
        stage, rows = self.stage, tokens.shape[0] // self.microbatches
        shape = (rows, tokens.shape[1], stage.dim)
        states = torch.empty(shape, dtype=stage.dtype, device="meta", requires_grad=True)
        loss = torch.empty((), device="meta", requires_grad=True)
        module = Call(self._forward)
        module.model = stage.model  # torch looks for parameters there
        part = PipelineStage(
            module,
            stage.index,
            stage.count,
            tokens.device,
            input_args=() if stage.is_first else (states,),
            output_args=loss if stage.is_last else states,
        )
        self._schedule = SCHEDULES[self.schedule](
            part, self.microbatches, loss_fn=lambda loss, target: loss, scale_grads=False
        )
        return self._schedule

    def _forward(self, *states: Tensor, **batch: Tensor) -> Tensor:
        """Return a micro-batch's states for the next stage, or on the last stage its share of the batch's loss."""
        self.stage.states = states[0] if states else None
        try:
            with self.precision():
                result = self.compute(batch)
        finally:
            self.stage.states = None
        if not self.stage.is_last:
            return result
        weight = self.task.weight(batch)
        if weight is None or self._targets is None:
            return result / self.microbatches
        return result * weight / self._targets.clamp(min=1)


class PrecomputedLoss(torch.autograd.Function):
    """A loss whose gradients are computed together with its value and returned in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[], tuple[Tensor, list[Tensor | None]]], *parameters: nn.Parameter
    ) -> Tensor:
        """Compute value and gradients, and return the value."""
        loss, ctx.gradients = run()
        return loss

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, times the gradient of the loss."""
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(g if g is None else g.mul_(*scales) for g in gradients)


def add_gradients(stage: Stage) -> None:
    """Add the last stage's gradient of a tied matrix to the first stage's, which alone is clipped and optimized."""
    if stage.tied is None:
        return
    if stage.is_last:
        assert stage.tied.grad is not None
        torch.distributed.send(stage.tied.grad, 0)
        stage.tied.grad = None
    else:
        other = torch.empty_like(stage.tied)
        torch.distributed.recv(other, stage.count - 1)
        assert stage.tied.grad is not None
        stage.tied.grad += other


@torch.no_grad()
def update_copy(stage: Stage) -> None:
    """Copy a tied matrix from the first stage to the last one."""
    if stage.tied is None:
        return
    if stage.is_first:
        torch.distributed.send(stage.tied.detach(), stage.count - 1)
    else:
        torch.distributed.recv(stage.tied.data, 0)


class ParameterNames:
    """The names and optimizer indices that a stage's parameters have in the whole model.

    Args:
        stage: this device's stage.
        groups: returns the parameter groups of a model.

    Attributes:
        tied: for each name in the module's state, the first name of the same tensor.
        owners: the rank that has each tensor, by its first name.
        groups: the names in each parameter group of the whole model, in order.
        own: those that this stage has; a group may be empty.
        numbers: the index of each name in the optimizer of the whole model.
        own_numbers: the index of each own name in this stage's optimizer.
    """

    def __init__(self, stage: Stage, groups: Callable[[nn.Module], Groups]) -> None:
        self.stage = stage
        first: dict[int, str] = {}
        state = stage.whole.state_dict(keep_vars=True)
        self.tied = {
            f"model.{name}": f"model.{first.setdefault(id(tensor), name)}"
            for name, tensor in state.items()
        }
        kept = distributed.gather(list(stage.model.state_dict()))
        self.owners = {
            f"model.{name}": rank for rank in reversed(range(len(kept))) for name in kept[rank]
        }
        self._settings = groups(stage.whole)
        names = {id(p): name for name, p in stage.whole.named_parameters()}
        self.groups = [[names[id(p)] for p in group["params"]] for group in self._settings]
        self.numbers = {name: number for number, name in enumerate(chain(*self.groups))}
        own = {name for name, _ in stage.model.named_parameters()}
        self.own = [[name for name in group if name in own] for group in self.groups]
        self.own_numbers = {name: number for number, name in enumerate(chain(*self.own))}

    def trained(self) -> set[str]:
        """Return the names of the trained parameters of all stages."""
        return {f"model.{n}" for n, p in self.stage.whole.named_parameters() if p.requires_grad}

    def own_groups(self, model: nn.Module) -> Groups:
        """Return the parameter groups of the whole model, with this stage's parameters only."""
        return [
            {**settings, "params": [model.get_parameter(name) for name in names]}
            for settings, names in zip(self._settings, self.own, strict=True)
        ]

    def whole_state(self, own: Mapping[str, Tensor]) -> dict[str, Any]:
        """Gather a module's state on the first device; tied tensors stay tied."""
        first = {
            name: distributed.gather_to_first(on_cpu(own.get(name)), self.owners[name])
            for name in dict.fromkeys(self.tied.values())
        }
        return {name: first[of] for name, of in self.tied.items()}

    def whole_optimizer(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Gather an optimizer's state on the first device."""
        state = {}
        for name, number in self.numbers.items():
            mine = on_cpu(own["state"].get(self.own_numbers.get(name)))
            values = distributed.gather_to_first(mine, self.owners[f"model.{name}"])
            if values is not None:
                state[number] = values
        groups = [
            {**group, "params": [self.numbers[name] for name in names]}
            for group, names in zip(own["param_groups"], self.groups, strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def own_optimizer(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return this stage's part of an optimizer's state over the whole model."""
        state = {
            own_number: stored["state"][self.numbers[name]]
            for name, own_number in self.own_numbers.items()
            if self.numbers[name] in stored["state"]
        }
        groups = [
            {**group, "params": [self.own_numbers[name] for name in names]}
            for group, names in zip(stored["param_groups"], self.own, strict=True)
        ]
        return {**stored, "state": state, "param_groups": groups}


def on_cpu(value: Any) -> Any:
    """Return a tensor, or a dictionary of tensors, on the CPU; other values unchanged."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return {key: on_cpu(each) for key, each in value.items()} if isinstance(value, dict) else value
