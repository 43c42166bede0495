"""Restoring a trained run."""

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

# The sections of a run's configuration that are built. The run may be untrusted, so they are checked first.
SECTIONS = {
    "data": Deferred[DataModule],
    "task": Deferred[Task],
    "adapter": Adapter | None,
    "trainer": TrainerSettings,
}


def restore_run(
    weights: RunWeights, hardware: Hardware, test_path: str | None, malformed: str = "stop"
) -> tuple[DataModule, Task]:
    """Return a run's data, and its task with the trained model.

    Raises:
        ConfigError: the run's configuration cannot be built, its checkpoint cannot be read, the base weights of its
            adapter are missing, or the data have changed.
    """
    config = deepcopy(weights.config)
    if test_path is not None:
        config.data.test_path = test_path
        if "malformed" in config.data:
            config.data.malformed = malformed
    if OmegaConf.select(config, "task.reward.accelerator") is not None:
        # The saved accelerator may be that of another machine.
        config.task.reward.accelerator = hardware.accelerator
    with weights.named():
        built = check_nodes(config, SECTIONS)
    # An adapter and a reference model need the weights that the run began from.
    from_base = config.get("adapter") is not None or "reference" in config.task
    base = weights.base_weights(config) if from_base else None
    with network.offline(str(weights.path)):  # the run names its data, and may be untrusted
        data = (
            prepare_data(config, weights) if test_path is not None else same_data(config, weights)
        )
    task = make_task(
        built["task"],
        settings=built["trainer"],
        hardware=hardware,
        weights=base,
        adapter=built.get("adapter"),
    )
    if reference := getattr(task, "reference", None):
        reference.start(task.model)
    weights.restore(task.model, is_adapted=task.is_adapted)
    return data, task


def same_data(config: DictConfig, weights: RunWeights) -> DataModule:
    """Return the data that a run was trained on.

    Their fingerprint includes the tokenizer, which is taken from the base weights or trained again.

    Raises:
        ConfigError: they have changed.
    """
    if config.weights is not None:
        require_source(config)
    try:
        base = require_weights(config) if config.weights is not None else None
    except ConfigError:
        new_console().print(
            f"note: {OmegaConf.select(config, 'weights.path')}, the base weights of {weights.path}, is missing: "
            "it cannot be checked whether the data are the same",
            soft_wrap=True,
        )
        return prepare_data(config, weights)
    data = prepare_data(config, base)
    if data.fingerprint != weights.run.record.get("data"):
        raise ConfigError(
            f"weights.path: the training data of {weights.path} have changed, so its test part may overlap with what "
            "it was trained on; restore the files, or pass a test file with test_path="
        )
    return data
