"""Lightning's strategy for a model that is divided into stages, trained by torch's pipeline schedules.

A schedule computes forward and backward in one go, and Lightning wants them apart: first the loss, then
fresh gradients, then the backward pass. So the task's step is a function with a gradient of its own: to
compute its value runs the schedule, which finds the parameters' gradients as well; to compute its gradient
hands them out, scaled. All else in Lightning, accumulation, clipping and hooks, is as it is on one device.

Checkpoints are those of one device: parameters under their names, an optimizer's state under the number
that the parameter has in the whole model. The first device gathers them one by one and writes them.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.optim import Optimizer

from llm import distributed
from llm.config.build import config_errors_at
from llm.parallel.mesh_strategy import MeshStrategy
from llm.parallel.pipeline_stage import Stage
from llm.tasks.base import Batch, Groups, Task
from llm.tasks.pretraining import Pretraining

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class PipelineStrategy(MeshStrategy):
    """A chain of devices, each with a stage of the model.

    Args:
        world: how many there are.
        schedule: the order of their work.
        microbatches: equal parts that a batch goes through them in.
        compiled: whether each stage compiles what it computes.
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
        """The number of this device's random stream: stages have layers of their own to draw for."""
        return self.global_rank

    def setup(self, trainer: Any) -> None:
        """Divide the model, once: Lightning sets up for each fit and test."""
        if self.stage is None:
            with config_errors_at("hardware.strategy"):
                self._divide()
        super().setup(trainer)

    def _divide(self) -> None:
        # Only the last stage measures, and its metrics are gathered.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        task = self._task
        require_logits(task)
        self.stage = Stage(task.model, index=self.global_rank, count=self.world_size)
        self.names = ParameterNames(self.stage, task.parameter_groups)
        self.work = StageStep(
            task,
            self.stage,
            schedule=self.schedule,
            microbatches=self.microbatches,
            precision=self._precision,
        )
        if self.compiled:
            self.work.compute = torch.compile(self.work.compute)
        task.step = self.work.step
        task.parameter_groups = self.names.own_groups
        task.trained_names = self.names.trained
        task.peers = torch.distributed.group.WORLD

    @property
    def _measuring(self) -> Any:
        """All: the last one alone measures."""
        return torch.distributed.group.WORLD

    @property
    def _task(self) -> Task:
        assert isinstance(self.lightning_module, Task)
        return self.lightning_module

    def _precision(self) -> Any:
        return self.precision_plugin.forward_context()

    # Steps

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """As of the task; the step before's gradients are let go of, for this one's come now."""
        if self._task.begins_step(batch_idx):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        return super().training_step(batch, batch_idx)

    def validation_step(self, *args: Any) -> None:
        """As of the task, on the last stage; the others hand their states on."""
        self._evaluate(super().validation_step, *args)

    def test_step(self, *args: Any) -> None:
        """Likewise."""
        self._evaluate(super().test_step, *args)

    def _evaluate(self, step: Callable[..., Any], batch: Batch, *args: Any) -> None:
        assert self.stage is not None
        with self.stage.keeping_logits():
            if self.stage.is_last:
                step(batch, *args)
            else:
                with self._precision():
                    cast(Pretraining, self._task).logits(batch)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """As anywhere; the matrix that two stages share has one gradient before it, one value after it."""
        stage = self.stage
        assert stage is not None

        def closed() -> Any:
            result = closure()
            add_gradients(stage)
            return result

        result = super().optimizer_step(optimizer, closed, model, **kwargs)
        renew_copy(stage)
        return result

    # Checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole module's parameters by name, on the first device; the others have the names alone."""
        own = self._module.state_dict()
        return self.names.whole_state(own)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer over the whole model, likewise."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return self.names.whole_optimizer(optimizer.state_dict())

    def load_model_state_dict(
        self,
        checkpoint: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Fill this stage's parameters."""
        stored = checkpoint["state_dict"]
        if strict and stored.keys() != self.names.tied.keys():
            difference = sorted(stored.keys() ^ self.names.tied.keys())
            raise ValueError(f"the checkpoint holds other parameters: {difference}")
        own = {name: stored[name] for name in self._module.state_dict() if name in stored}
        super().load_model_state_dict({"state_dict": own}, strict=False)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fill the state of this stage's parameters."""
        own = [self.names.own_optimizer(stored) for stored in checkpoint["optimizer_states"]]
        super().load_optimizer_state_dict({"optimizer_states": own})


def require_logits(task: nn.Module) -> None:
    """Refuse a task that asks a model for more than the logits of its batch."""
    if not isinstance(task, Pretraining):
        raise ValueError(
            f"a pipeline trains task=pretraining and task=sft, not {type(task).__name__}: use hardware=fsdp"
        )


class StageStep:
    """What a stage does in a training step.

    Args:
        task: whose model is divided.
        stage: this device's.
        schedule: the order.
        microbatches: how many.
        precision: makes the context that the model computes in.
    """

    def __init__(
        self,
        task: Task,
        stage: Stage,
        *,
        schedule: Literal["gpipe", "1f1b"],
        microbatches: int,
        precision: Callable[[], Any],
    ) -> None:
        self.task, self.stage = cast(Pretraining, task), stage
        # The step as it is defined: the task's own may be compiled, and is about to be this one.
        self.compute = (
            partial(type(self.task).step, self.task) if stage.is_last else self.task.logits
        )
        self.schedule, self.microbatches = schedule, microbatches
        self.precision = precision
        self._shape: torch.Size | None = None
        self._schedule: Any = None
        self._targets: Tensor | None = None

    def step(self, batch: Batch) -> Tensor:
        """The loss of a batch, on every device, with a gradient in this stage's parameters."""
        parameters = [p for p in self.stage.model.parameters() if p.requires_grad]
        return PrecomputedLoss.apply(lambda: self._run(batch, parameters), *parameters)

    def _run(
        self, batch: Batch, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Loss and gradients. What gradients there were, of earlier batches, stays as it was."""
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._targets = self.task.weight(batch)
        losses: list[Tensor] = []
        device = batch["tokens"].device
        # Autocast is for the forward pass, and the schedule runs both.
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
        """The schedule, made anew where batches come in another shape: its buffers are of one."""
        if tokens.shape == self._shape:
            return self._schedule
        self._shape = tokens.shape
        stage, rows = self.stage, tokens.shape[0] // self.microbatches
        shape = (rows, tokens.shape[1], stage.dim)
        states = torch.empty(shape, dtype=stage.dtype, device="meta", requires_grad=True)
        loss = torch.empty((), device="meta", requires_grad=True)
        part = PipelineStage(
            Module(self._forward, stage.model),
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
        """A micro-batch's states for the next stage; of the last one its share of the batch's loss."""
        with self.precision(), self.stage.given(states):
            result = self.compute(batch)
        if not self.stage.is_last:
            return result
        weight = self.task.weight(batch)
        if weight is None or self._targets is None:
            return result / self.microbatches
        return result * weight / self._targets.clamp(min=1)


class Module(nn.Module):
    """A function as a module, with the parameters that it computes with.

    Args:
        function: what `forward` does.
        model: whose the parameters are.
    """

    def __init__(self, function: Callable[..., Tensor], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The function's result."""
        return self.function(*args, **kwargs)


class PrecomputedLoss(torch.autograd.Function):
    """A scalar whose gradient is found together with its value, and given out when it is asked for."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[], tuple[Tensor, list[Tensor | None]]], *parameters: nn.Parameter
    ) -> Tensor:
        """The value."""
        loss, ctx.gradients = run()
        return loss

    @staticmethod
    def backward(ctx: Any, *scales: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times that of what the value became."""
        gradients, ctx.gradients = ctx.gradients, None
        return None, *(g if g is None else g.mul_(*scales) for g in gradients)


def add_gradients(stage: Stage) -> None:
    """Give the first stage the gradient of the matrix's copy too, which no optimizer looks after.

    So that the norm of the gradients counts it once, and the optimizer keeps one state for it.
    """
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
def renew_copy(stage: Stage) -> None:
    """Give the last stage the matrix that the first has just changed."""
    if stage.tied is None:
        return
    if stage.is_first:
        torch.distributed.send(stage.tied.detach(), stage.count - 1)
    else:
        torch.distributed.recv(stage.tied.data, 0)


class ParameterNames:
    """What the parameters of a divided model are called and numbered in the whole.

    Args:
        stage: this device's part.
        groups: sorts a model's parameters into groups.

    Attributes:
        tied: the first name of each entry of the module's state, by each of its names.
        owners: the rank that keeps it, by that first name.
        groups: the names in each group of the whole, in order.
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
        if not any(self.own):
            raise ValueError(
                f"no parameter of stage {stage.index} is trained: use fewer devices, or freeze less"
            )

    def trained(self) -> set[str]:
        """The names in the module of what is trained, on any device."""
        return {f"model.{n}" for n, p in self.stage.whole.named_parameters() if p.requires_grad}

    def own_groups(self, model: nn.Module) -> Groups:
        """The groups of the whole model, of each what this stage has."""
        return [
            {**settings, "params": [model.get_parameter(name) for name in names]}
            for settings, names in zip(self._settings, self.own, strict=True)
            if names
        ]

    def whole_state(self, own: Mapping[str, Tensor]) -> dict[str, Any]:
        """All of a module's state on the first device, from each device's own; tied tensors stay one."""
        first = {
            name: distributed.gather_to_first(on_cpu(own.get(name)), self.owners[name])
            for name in dict.fromkeys(self.tied.values())
        }
        return {name: first[of] for name, of in self.tied.items()}

    def whole_optimizer(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state over the whole model, from each device's own, on the first device."""
        places = {name: place for place, name in enumerate(chain(*self.own))}
        state = {}
        for name, number in self.numbers.items():
            mine = on_cpu(own["state"].get(places.get(name)))
            values = distributed.gather_to_first(mine, self.owners[f"model.{name}"])
            if values is not None:
                state[number] = values
        settings = dict(
            pair for pairs in distributed.gather(self._own_settings(own)) for pair in pairs
        )
        groups = [
            {**settings[index], "params": [self.numbers[name] for name in names]}
            for index, names in enumerate(self.groups)
        ]
        return {"state": state, "param_groups": groups}

    def own_optimizer(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What this stage has of an optimizer's state over the whole model."""
        numbers = [self.numbers[name] for name in chain(*self.own)]
        state = {
            place: stored["state"][number]
            for place, number in enumerate(numbers)
            if number in stored["state"]
        }
        groups, place = [], 0
        for group, names in zip(stored["param_groups"], self.own, strict=True):
            if names:
                groups.append({**group, "params": list(range(place, place + len(names)))})
                place += len(names)
        return {**stored, "state": state, "param_groups": groups}

    def _own_settings(self, own: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """What is set for each group that this stage has some of, by the group's number."""
        kept = [index for index, names in enumerate(self.own) if names]
        return [
            (index, {key: value for key, value in group.items() if key != "params"})
            for index, group in zip(kept, own["param_groups"], strict=True)
        ]


def on_cpu(value: Any) -> Any:
    """A tensor, or a dictionary of them, where it can be told to others."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    return {key: on_cpu(each) for key, each in value.items()} if isinstance(value, dict) else value
