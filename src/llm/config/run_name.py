"""The default name of a run, made from its overrides."""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from llm.config.fingerprint import IGNORE, is_among
from llm.config.overrides import key_of

DEFAULT_EXPERIMENT = "python_docs"
LONGEST_NAME = 120  # bytes


def base_name(choices: Mapping[str, str | None]) -> str:
    """Return the start of a run's name: the experiment or, for the default experiment, the data."""
    experiment = str(choices["experiment"])
    return str(choices["data"]) if experiment == DEFAULT_EXPERIMENT else experiment


def run_name(base: str, overrides: Iterable[str], named: Collection[str] = ()) -> str:
    """Return a directory name made from overrides, in order: `verdict,model=llama,seed=2`.

    Overrides that do not change the identity of a run (hardware, loggers, callbacks, budget) are left out.

    Args:
        base: start of the name; the override `data=base` is not repeated.
        overrides: the overrides of the command line.
        named: overrides that are always included.
    """
    nameless = (*IGNORE, "experiment")
    words = [each for each in overrides if each in named or not is_among(key_of(each), nameless)]
    name = ",".join([base, *(_plain(each) for each in words if each != f"data={base}")])
    whole = name.encode("utf-8", "replace")
    if len(whole) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(whole).hexdigest()[:8]
    return f"{whole[: LONGEST_NAME - 9].decode('utf-8', 'ignore')}-{digest}"


def _plain(override: str) -> str:
    unquoted = re.sub("[\"']", "", override)
    return re.sub(r"[^\w.=+~,-]+", "-", unquoted).strip("-")


def _resolve(name: str | None) -> str:
    """Return the given name, or one made from the overrides that are being composed."""
    hydra = HydraConfig.get()
    return name or run_name(base_name(hydra.runtime.choices), hydra.overrides.task)


OmegaConf.register_new_resolver("run_name", _resolve, replace=True)
