"""A run as it was trained: its data and its task, with what the model has learned."""

from copy import deepcopy

from omegaconf import DictConfig, OmegaConf

from llm import network
from llm.adapters.base import Adapter
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.data.base import DataModule
from llm.hardware import Hardware
from llm.tasks.base import Task
from llm.terminal.console import new_console
from llm.training.setup import make_task, prepare_data
from llm.training.trainer import TrainerSettings
from llm.weights.run import RunWeights, require_source, require_weights

CONSOLE = new_console()
# What is built of a run's configuration; it may be a stranger's, so these are checked first.
SECTIONS = {
    "data": Deferred[DataModule],
    "task": Deferred[Task],
    "adapter": Adapter | None,
    "trainer": TrainerSettings,
}


def restore_run(
    weights: RunWeights, hardware: Hardware, test_path: str | None, malformed: str = "stop"
) -> tuple[DataModule, Task]:
    """A run's data and task as they were trained, the task's model with what it has learned.

    Raises:
        ConfigError: the run's configuration cannot be built, its checkpoint cannot be read, the weights
            under its adapter are gone, or the data are others than it was trained on.
    """
    config = deepcopy(weights.config)
    if test_path is not None:
        config.data.test_path = test_path
        if "malformed" in config.data:
            config.data.malformed = malformed
    if OmegaConf.select(config, "task.reward.accelerator") is not None:
        config.task.reward.accelerator = hardware.accelerator  # this machine's, not the training's
    with weights.named():
        parts = check_nodes(config, SECTIONS)
    # An adapter stands on the weights that the run began from, and a reference is those weights.
    from_base = config.get("adapter") is not None or "reference" in config.task
    base = weights.base_weights(config) if from_base else None
    with network.offline(str(weights.path)):  # the run names its data, and may be a stranger's
        data = (
            prepare_data(config, weights) if test_path is not None else same_data(config, weights)
        )
    task = make_task(
        parts["task"],
        settings=parts["trainer"],
        hardware=hardware,
        weights=base,
        adapter=parts.get("adapter"),
    )
    if reference := getattr(task, "reference", None):
        reference.start(task.model)
    weights.restore(task.model, is_adapted=task.is_adapted)
    return data, task


def same_data(config: DictConfig, weights: RunWeights) -> DataModule:
    """The data that a run was trained on.

    They are known by a fingerprint, of which the tokenizer is part: that of the weights the run began
    from, or one that is fitted again and comes out the same.

    Raises:
        ConfigError: they have changed.
    """
    if config.weights is not None:
        require_source(config)
    try:
        base = require_weights(config) if config.weights is not None else None
    except ConfigError:
        CONSOLE.print(
            f"note: {OmegaConf.select(config, 'weights.path')}, from which {weights.path} began, is gone: "
            "whether its data are the same cannot be told",
            soft_wrap=True,
        )
        return prepare_data(config, weights)
    data = prepare_data(config, base)
    if data.fingerprint != weights.run.record.get("data"):
        raise ConfigError(
            f"weights.path: the data that {weights.path} was trained on have changed since, so some of its "
            "test part may be what it has learned; restore the files, or name one to test on in test_path="
        )
    return data
