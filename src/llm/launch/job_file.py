"""The file that hands a composed point to another process, such as a job of a sweep.

A process that is given the file composes nothing: no word of a command line is written, quoted or read again,
so that a value reaches it as it was understood when a person typed it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llm.config.errors import ConfigError
from llm.config.point import Point, trusts
from llm.config.resolvers import escaped, lookups
from llm.files import read_yaml, write_text


def write_point(file: Path, point: Point) -> None:
    """Write a point for `read_point`. References from one key to another stay: some are filled in later."""
    config = OmegaConf.to_container(point.config, resolve=False)
    directory = os.path.abspath(point.directory)  # noqa: PTH100  (of links nothing is resolved)
    content = {
        "overrides": escaped(point.overrides),
        "choices": point.choices,
        "directory": escaped(directory),
        "options": escaped([*point.options]),
        "config": config,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, OmegaConf.to_yaml(OmegaConf.create(content)))


def read_point(file: Path, trust: Sequence[str] = ()) -> Point:
    """A point out of its file, which is believed no more than any other configuration.

    Args:
        file: as `write_point` left it.
        trust: the packages that the command trusts; the file may name no others.

    Raises:
        ConfigError: the file cannot be read, or is not a point's, or trusts others.
    """
    try:
        content = read_yaml(file)
        plain: Any = OmegaConf.to_container(content, resolve=False)
        Point(**plain)
    except (OSError, TypeError) as error:
        raise ConfigError(f"{file}: is not the file of a job; name one of a sweep's") from error
    for text in lookups(plain):
        raise ConfigError(f"{file}: {text} would be looked up on this machine; write the value")
    for key, value in trusts(plain["config"]):
        if isinstance(value, list) and not {*map(str, value)} <= {*trust}:
            raise ConfigError(f"{file}: {key} names {value}; give the packages after the file")
    config: Any = OmegaConf.create(plain["config"])
    OmegaConf.set_struct(config, True)
    del content.config
    plain = OmegaConf.to_container(content, resolve=True)
    return Point(**plain, config=config)
