"""One thing that is going to run, composed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf


class Point(NamedTuple):
    """One thing that is going to run.

    Attributes:
        overrides: the words that make it.
        config: the composed tree, without Hydra's own section and what only Hydra can look up.
        choices: the option chosen of each group.
        directory: where it runs.
        options: flags of the command line that it needs, such as a folder of configs.
    """

    overrides: list[str]
    config: DictConfig
    choices: dict[str, str | None]
    directory: str
    options: Sequence[str] = ()

    @property
    def own(self) -> list[str]:
        """The overrides without those of Hydra's own keys."""
        return [word for word in self.overrides if not word.startswith("hydra")]


def all_trusted(config: DictConfig) -> list[str]:
    """All packages that a tree trusts anywhere."""
    lists = (value for _, value in trusts(OmegaConf.to_container(config, resolve=False)))
    return sorted({str(each) for value in lists if isinstance(value, list) for each in value})


def trusts(plain: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What plain data says of trust, anywhere, with the full keys."""
    if not isinstance(plain, dict | list):
        return
    for name, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        child = f"{key}.{name}" if key else str(name)
        if name == "trust":
            yield child, value
        yield from trusts(value, child)
