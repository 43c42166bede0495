"""Running Hydra's sweeper and launcher on points that are already composed.

`Hydra.multirun` would compose the sweep again, and each of its points twice.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from llm.config.loader import Loader


def launch(
    loader: Loader, master: DictConfig, job: Callable[..., Any], changes: Mapping[str, Any]
) -> None:
    """Let Hydra's sweeper and launcher call `job` for each point, with `changes` in Hydra's section."""
    # Then Hydra raises the error of a crashed job instead of a shortened text.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    logging.getLogger("hydra").setLevel(logging.WARNING)  # the jobs print their own output
    for key, value in changes.items():
        OmegaConf.update(master.hydra, key, value, force_add=True)
    HydraConfig.instance().set_config(master)
    configure_log(master.hydra.hydra_logging, master.hydra.verbose)
    sweeper = Plugins.instance().instantiate_sweeper(
        config=master,
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=job,
    )
    sweeper.sweep(arguments=list(master.hydra.overrides.task))
