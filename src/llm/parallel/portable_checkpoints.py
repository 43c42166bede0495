"""The checkpoint format that all strategies share with a run on a single device.

Lightning's sharded checkpoints are pickles, which only the same strategy and number of devices can load. Here every
strategy stores whole parameters by name and optimizer state by parameter index, so that a run can resume with another
strategy.
"""

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ParallelStrategy
from torch import nn
from torch.optim import Optimizer

from llm.checkpoints.checkpoint_file import open_checkpoint
from llm.tasks.base import Task


class PortableCheckpoints(ParallelStrategy):
    """A base class of strategies that opens checkpoints in this format."""

    @property
    def task(self) -> Task:
        """The trained task."""
        assert isinstance(self.lightning_module, Task)
        return self.lightning_module

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning call `load_optimizer_state_dict`."""
        return True

    def load_checkpoint(
        self,
        checkpoint_path: str | Path,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Open a checkpoint. Large tensors are read when they are sliced."""
        return open_checkpoint(Path(checkpoint_path))


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return an optimizer's parameters in the order of their indices in its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
