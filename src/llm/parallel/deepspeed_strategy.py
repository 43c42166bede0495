"""DeepSpeed's engine inside Lightning, with checkpoints of our own.

The engine's checkpoints are folders of pickles, tied to a stage and a number of devices. Here a checkpoint
is that of one device, as every strategy's: float32 weights and the optimizer's state, gathered from all
devices one parameter at a time and written by the first. So a run goes on under another strategy.

Gradients are clipped by the engine, to the trainer's limit.
"""

# pyright: reportMissingImports=false
# DeepSpeed is an extra, and no part of a development environment.

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.checkpoints.checkpoint_file import open_checkpoint
from llm.config.build import config_errors_at
from llm.parallel.mesh_strategy import parameters_of
from llm.tasks.base import Task

# What turns each number by itself, so that it does not matter to which matrix the number belongs.
ELEMENTWISE = {"Adam", "AdamW", "SGD", "RMSprop"}


class DeepSpeedEngineStrategy(DeepSpeedStrategy):
    """Data parallelism by ZeRO.

    Args:
        stage: 2 or 3.
    """

    def __init__(self, stage: int) -> None:
        # Our loaders have no batch size; the engine wants one for its own speed metrics, which are not used.
        super().__init__(stage=stage, logging_batch_size_per_gpu=1)
        # Of the task's optimizer, before the engine flattens them.
        self._parameters: list[nn.Parameter] = []
        self._numbers: list[list[int]] = []

    @property
    def root_device(self) -> torch.device:
        """This rank's device; the engine asks for its number, of a CPU too."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Meet the other devices; on CPUs too, for Lightning says that DeepSpeed knows GPUs alone."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """The ranks have met already, and DeepSpeed talks as they do."""
        import deepspeed

        self.set_world_ranks()
        deepspeed.init_distributed(self._get_process_group_backend(), auto_mpi_discovery=False)

    def setup(self, trainer: Any) -> None:
        """Hand the model and its optimizer to the engine."""
        task = self._task
        task.configure_gradient_clipping = lambda *given, **names: None  # the engine does
        warnings.filterwarnings("ignore", message="Since DeepSpeed handles gradient clipping")
        super().setup(trainer)

    @property
    def _task(self) -> Task:
        assert isinstance(self.lightning_module, Task)
        return self.lightning_module

    def _init_optimizers(self) -> Any:
        optimizer, schedule = super()._init_optimizers()
        with config_errors_at("optimizer"):
            require_elementwise(optimizer)
        self._parameters = parameters_of(optimizer)
        self._numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
        return optimizer, schedule

    # Steps

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the engine does it; Lightning has divided the loss by the micro-batches of a step already."""
        return super().backward(closure_loss, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """The engine's step, and the norm of the gradients from before it clipped them."""
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        norm = self.deepspeed_engine.get_global_grad_norm()
        self._task.gradient_norm = None if norm is None else torch.as_tensor(norm)
        return result

    # Checkpoints

    # Lightning's for DeepSpeed takes none.
    checkpoint_io = DDPStrategy.checkpoint_io  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning loads the optimizer's state as it does anywhere: by `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's parameters, whole and in float32, on the first device; elsewhere their names."""
        from deepspeed.utils import safe_get_full_fp32_param

        known: dict[int, Any] = {}  # tied tensors stay one
        for parameter in self._task.parameters():
            with self._gathered(parameter):
                trained = safe_get_full_fp32_param(parameter)
                full = parameter if trained is None else trained.view(full_shape_of(parameter))
                known[id(parameter)] = self._kept(full)
        named = self._task.named_parameters(remove_duplicate=False)
        return {name: known[id(parameter)] for name, parameter in named}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of the task's optimizer, gathered like the parameters, by their indices."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        inner = self._zero.optimizer
        values = next(iter(inner.state.values()), {})
        divided = [key for key, value in values.items() if is_elementwise_state(value)]
        common = {key: value for key, value in values.items() if key not in divided}  # the steps
        state = {}
        for number, parameter in enumerate(self._parameters if values else ()):
            state[number] = deepcopy(common)  # each parameter counts its own
            for key in divided:
                full = safe_get_full_optimizer_state(parameter, key)
                state[number][key] = self._kept(full.view(full_shape_of(parameter)))
        groups = [
            {**group, "params": numbers}
            for group, numbers in zip(inner.param_groups, self._numbers, strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write it: the first device all."""
        DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self,
        checkpoint_path: str | Path,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Open a checkpoint, whose large tensors are read only when sliced."""
        return open_checkpoint(Path(checkpoint_path))

    def load_model_state_dict(
        self,
        checkpoint: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Fill the engine's weights and the float32 copies that the optimizer has of them."""
        from deepspeed.utils import safe_set_full_fp32_param

        stored, named = checkpoint["state_dict"], dict(self._task.named_parameters())
        if strict and not named.keys() <= stored.keys():
            raise ValueError(f"the checkpoint lacks {sorted(named.keys() - stored.keys())}")
        for name in named.keys() & stored.keys():  # the same order on all devices: of one set
            parameter = named[name]
            value = full_tensor(stored[name]).to(self.root_device)
            with self._gathered(parameter, modifier_rank=0), torch.no_grad():
                parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value.float())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fill the state of the shares that this device has."""
        from deepspeed.utils import safe_set_full_optimizer_state

        stored = checkpoint["optimizer_states"][0]["state"]
        if not stored:
            return
        values = stored[0]
        for share in self._shares:
            self._zero.optimizer.state[share] = {
                key: torch.zeros_like(share)
                if is_elementwise_state(value)
                else full_tensor(value).clone()
                for key, value in values.items()
            }
        self._link()
        for number, parameter in enumerate(self._parameters):
            for key, value in stored[number].items():
                if is_elementwise_state(value):
                    full = full_tensor(value).to(self.root_device)
                    safe_set_full_optimizer_state(parameter, full, key)

    @property
    def _zero(self) -> Any:
        """The engine's optimizer: around the task's, which turns flat shares of the parameters."""
        return self.deepspeed_engine.optimizer

    @property
    def _shares(self) -> Any:
        name = (
            "fp32_partitioned_groups_flat"
            if self.zero_stage_3
            else "single_partition_of_fp32_groups"
        )
        return getattr(self._zero, name)

    def _link(self) -> None:
        """Let stage 2 find the state of a parameter: it notes once, and too early, where that is."""
        if not self.zero_stage_3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _gathered(self, parameter: nn.Parameter, **how: Any) -> Any:
        """A context in which a device has all of a parameter."""
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage_3, **how)

    def _kept(self, tensor: Tensor) -> Tensor | None:
        return tensor.detach().clone().cpu() if self.is_global_zero else None


def require_even_weights(task: nn.Module) -> None:
    """Refuse a task whose batches weigh by their targets: the engine has averaged before anyone can weigh."""
    assert isinstance(task, Task)
    if type(task).weight is not Task.weight:
        raise ValueError(
            f"ZeRO averages over devices what {type(task).__name__} weighs by its targets: use hardware=fsdp"
        )


def require_elementwise(optimizer: Optimizer) -> None:
    """Refuse an optimizer that has to see a whole matrix: the engine shows it flat shares."""
    name = type(optimizer).__name__
    if name not in ELEMENTWISE:
        raise ValueError(
            f"ZeRO flattens parameters, which {name} does not work on: choose one of {', '.join(sorted(ELEMENTWISE))}, "
            "or hardware=fsdp"
        )


def full_shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter; stage 3 leaves an empty one on each device."""
    return getattr(parameter, "ds_shape", parameter.shape)


def is_elementwise_state(value: Any) -> bool:
    """Whether a value of an optimizer's state has a number for each of its parameter's."""
    return hasattr(value, "shape") and len(value.shape) > 0


def full_tensor(stored: Any) -> Tensor:
    """Return the whole of a stored tensor."""
    return stored[tuple(slice(0, size) for size in stored.shape)]
