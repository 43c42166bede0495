"""The file that hands a composed point to another process, such as a job of a sweep.

A process that is given the file composes nothing: no word of a command line is written, quoted or read again,
so that a value reaches it as it was understood when a person typed it.
"""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llm.config.composed import Composed, trusts
from llm.config.errors import ConfigError
from llm.config.resolvers import escaped, lookups
from llm.files import read_yaml, write_text


def write_composed(file: Path, composed: Composed) -> None:
    """Write a composed command for `read_composed`; references from one key to another stay, for some are filled in."""
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


def read_composed(file: Path, trust: Sequence[str] = ()) -> Composed:
    """Read a composed command, which is trusted no more than any other configuration.

    Args:
        file: as `write_composed` left it.
        trust: the packages that the command trusts; the file may name no others.

    Raises:
        ConfigError: the file cannot be read, or is not a point's, or trusts others.
    """
    wrong = ConfigError(f"{file}: is not the file of a job; name one of a sweep's")
    try:
        content = read_yaml(file)
    except OSError as error:
        raise wrong from error
    plain: Any = OmegaConf.to_container(content, resolve=False)
    if not isinstance(plain, dict) or {*plain} != {each.name for each in fields(Composed)}:
        raise wrong
    for text in lookups(plain):
        raise ConfigError(f"{file}: {text} would be looked up on this machine; write the value")
    for key, value in trusts(plain["config"]):
        if isinstance(value, list) and not {*map(str, value)} <= {*trust}:
            raise ConfigError(f"{file}: {key} names {value}; give the packages after the file")
    config: Any = OmegaConf.create(plain["config"])
    OmegaConf.set_struct(config, value=True)
    del content.config
    plain = OmegaConf.to_container(content, resolve=True)
    return Composed(**plain, config=config)
