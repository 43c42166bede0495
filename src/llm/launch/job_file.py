"""The file that passes a composed point to another process, such as a job of a sweep.

The other process does not compose again, so no override is quoted and parsed twice.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config import annotations
from llm.config.composed import Composed, all_trusted, trusts
from llm.config.errors import ConfigError
from llm.config.resolvers import escaped, lookups
from llm.files import read_yaml, write_text

# The keys of a job file.
KINDS: dict[str, Any] = {
    "config": dict[str, Any],
    "overrides": list[str],
    "choices": dict[str, str | None],
    "directory": str,
    "flags": list[str],
}


def write_composed(file: Path, composed: Composed) -> None:
    """Write a composed command for `read_composed`. References are kept, because some keys are filled in later."""
    config = OmegaConf.to_container(composed.config, resolve=False)
    directory = os.path.abspath(composed.directory)  # noqa: PTH100  (links are not resolved)
    content = {
        "overrides": escaped([*composed.overrides]),
        "choices": dict(composed.choices),
        "directory": escaped(directory),
        "flags": escaped([*composed.flags]),
        "config": config,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, OmegaConf.to_yaml(OmegaConf.create(content)))


def job_command(name: str, file: Path, config: DictConfig) -> list[str]:
    """Return the command line of a process that runs a job file, with the packages that its configuration trusts."""
    return [sys.executable, "-m", "llm", name, "--job", str(file), *all_trusted(config)]


def read_composed(file: Path, trust: Sequence[str] = ()) -> Composed:
    """Read a composed command, and check it like any other configuration.

    Args:
        file: a file of `write_composed`.
        trust: the packages that the file may trust.

    Raises:
        ConfigError: the file cannot be read, is not a job file, or trusts other packages.
    """
    wrong = ConfigError(f"{file}: is not a job file; pass one from the folder of a sweep")
    try:
        content = read_yaml(file)
    except OSError as error:
        raise wrong from error
    plain: Any = OmegaConf.to_container(content, resolve=False)
    has_keys = isinstance(plain, dict) and {*plain} == {*KINDS}
    if not (has_keys and all(annotations.accepts(KINDS[key], plain[key]) for key in KINDS)):
        raise wrong
    for text in lookups(plain):
        raise ConfigError(f"{file}: {text} would read a value from this machine; write the value")
    for key, value in trusts(plain["config"]):
        if isinstance(value, list) and not {*map(str, value)} <= {*trust}:
            raise ConfigError(f"{file}: {key} names {value}; pass the packages after the file")
    config: Any = OmegaConf.create(plain["config"])
    OmegaConf.set_struct(config, value=True)
    del content.config
    plain = OmegaConf.to_container(content, resolve=True)
    return Composed(**plain, config=config)
