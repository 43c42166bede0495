"""Lightning's strategy for DeepSpeed's engine, with the same checkpoints as a run on a single device.

The engine's own checkpoints are folders of pickles, which only a run with the same stage and number of devices can
load. Here float32 weights and optimizer state are gathered from all devices, one parameter at a time, and the first
device writes them.

The engine, not the task, clips the gradients, to the trainer's limit.
"""

# DeepSpeed is an optional dependency, so it is imported where it is used.
# pyright: reportMissingImports=false

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from llm.config.build import config_errors_at
from llm.parallel.portable_checkpoints import PortableCheckpoints, parameters_of

# Optimizers that update each element independently, so that they also work on flattened shards of the parameters.
ELEMENTWISE = {"Adam", "AdamW", "SGD", "RMSprop"}


class DeepSpeedEngineStrategy(PortableCheckpoints, DeepSpeedStrategy):
    """Data parallelism by ZeRO.

    Args:
        stage: 2 or 3.
    """

    def __init__(self, stage: int) -> None:
        # Our loaders have no batch size. The engine needs one for its speed metrics, which are not used.
        super().__init__(stage=stage, logging_batch_size_per_gpu=1)
        # The task's parameters and their indices in the optimizer, before the engine flattens the parameters.
        self._parameters: list[nn.Parameter] = []
        self._numbers: list[list[int]] = []

    @property
    def root_device(self) -> torch.device:
        """This rank's device; the engine needs an index for a CPU too."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Create the process group, also on CPUs, which Lightning's DeepSpeedStrategy rejects."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Pass the existing process group to DeepSpeed."""
        import deepspeed

        self.set_world_ranks()
        deepspeed.init_distributed(self._get_process_group_backend(), auto_mpi_discovery=False)

    def setup(self, trainer: Any) -> None:
        """Pass the model and its optimizer to the engine."""
        self.task.configure_gradient_clipping = lambda *args, **kwargs: None  # the engine clips
        warnings.filterwarnings("ignore", message="Since DeepSpeed handles gradient clipping")
        super().setup(trainer)

    def _init_optimizers(self) -> Any:
        optimizer, schedule = super()._init_optimizers()
        with config_errors_at("optimizer"):
            require_elementwise(optimizer)
        self._parameters = parameters_of(optimizer)
        self._numbers = [group["params"] for group in optimizer.state_dict()["param_groups"]]
        return optimizer, schedule

    # Steps

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the engine's backward pass. Lightning has already divided the loss by the accumulated batches."""
        return super().backward(closure_loss, *args, scale_wrt_gas=False, **kwargs)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        """Run the engine's step, and record the norm of the gradients before clipping."""
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        norm = self.deepspeed_engine.get_global_grad_norm()
        self.task.gradient_norm = None if norm is None else torch.as_tensor(norm)
        return result

    # Checkpoints

    # DeepSpeedStrategy has its own format; these two write ours.
    checkpoint_io = DDPStrategy.checkpoint_io  # pyright: ignore[reportIncompatibleMethodOverride]
    save_checkpoint = DDPStrategy.save_checkpoint

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole parameters by name, in float32, on the first device; None on the others."""
        from deepspeed.utils import safe_get_full_fp32_param

        known: dict[int, Any] = {}  # tied parameters stay tied
        for parameter in self.task.parameters():
            with self._gathered(parameter):
                trained = safe_get_full_fp32_param(parameter)
                full = parameter if trained is None else trained.view(full_shape_of(parameter))
                known[id(parameter)] = self._kept(full)
        named = self.task.named_parameters(remove_duplicate=False)
        return {name: known[id(parameter)] for name, parameter in named}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of the task's optimizer, gathered like the parameters, by parameter index."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        inner = self._zero.optimizer
        values = next(iter(inner.state.values()), {})
        divided = [key for key, value in values.items() if is_elementwise_state(value)]
        common = {key: value for key, value in values.items() if key not in divided}  # step counts
        state = {}
        for number, parameter in enumerate(self._parameters if values else ()):
            state[number] = deepcopy(common)  # every parameter has its own count
            for key in divided:
                full = safe_get_full_optimizer_state(parameter, key)
                state[number][key] = self._kept(full.view(full_shape_of(parameter)))
        groups = [
            {**group, "params": numbers}
            for group, numbers in zip(inner.param_groups, self._numbers, strict=True)
        ]
        return {"state": state, "param_groups": groups}

    def load_model_state_dict(
        self,
        checkpoint: Mapping[str, Any],
        strict: bool = True,  # noqa: FBT001, FBT002
    ) -> None:
        """Load the engine's weights and the optimizer's float32 copies of them."""
        from deepspeed.utils import safe_set_full_fp32_param

        stored, named = checkpoint["state_dict"], dict(self.task.named_parameters())
        if strict and not named.keys() <= stored.keys():
            raise ValueError(
                f"the checkpoint lacks the parameters {sorted(named.keys() - stored.keys())}; "
                "resume with the model that it was written with"
            )
        for name in sorted(named.keys() & stored.keys()):  # in the same order on all devices
            parameter = named[name]
            value = stored[name][...].to(self.root_device)
            with self._gathered(parameter, modifier_rank=0), torch.no_grad():
                parameter.copy_(value)
            safe_set_full_fp32_param(parameter, value.float())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizer state of this device's shards."""
        from deepspeed.utils import safe_set_full_optimizer_state

        stored = checkpoint["optimizer_states"][0]["state"]
        if not stored:
            return
        values = stored[0]
        for shard in self._shards:
            self._zero.optimizer.state[shard] = {
                key: torch.zeros_like(shard) if is_elementwise_state(value) else value[...].clone()
                for key, value in values.items()
            }
        self._link()
        for number, parameter in enumerate(self._parameters):
            for key, value in stored[number].items():
                if is_elementwise_state(value):
                    full = value[...].to(self.root_device)
                    safe_set_full_optimizer_state(parameter, full, key)

    @property
    def _zero(self) -> Any:
        """The engine's optimizer, which passes flattened shards of the parameters to the task's optimizer."""
        return self.deepspeed_engine.optimizer

    @property
    def _shards(self) -> Any:
        if self.zero_stage_3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _link(self) -> None:
        """Make stage 2 look up the state of each parameter again; the engine does so only once, and too early."""
        if not self.zero_stage_3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _gathered(self, parameter: nn.Parameter, **kwargs: Any) -> Any:
        """Return a context in which every device has the whole parameter."""
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], enabled=self.zero_stage_3, **kwargs)

    def _kept(self, tensor: Tensor) -> Tensor | None:
        return tensor.detach().clone().cpu() if self.is_global_zero else None


def require_elementwise(optimizer: Optimizer) -> None:
    """Require an optimizer that works on flattened shards of the parameters."""
    name = type(optimizer).__name__
    if name not in ELEMENTWISE:
        raise ValueError(
            f"ZeRO flattens parameters, which {name} does not work on: choose one of {', '.join(sorted(ELEMENTWISE))}, "
            "or hardware=fsdp"
        )


def full_shape_of(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of the whole parameter, which stage 3 leaves empty on each device."""
    return getattr(parameter, "ds_shape", parameter.shape)


def is_elementwise_state(value: Any) -> bool:
    """Return whether a value of an optimizer's state has one element for each element of its parameter."""
    return hasattr(value, "shape") and len(value.shape) > 0
