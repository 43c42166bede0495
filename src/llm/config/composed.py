"""The result of a composition."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config.overrides import is_hydras
from llm.config.plain import nested_items


@dataclass(frozen=True)
class Composed:
    """A composed command.

    Attributes:
        config: the tree, without Hydra's own section. Hydra's values are resolved, references between keys are kept.
        overrides: the overrides of the command line.
        choices: the chosen option of each group.
        directory: the folder of the run.
        flags: flags that change the meaning of the overrides, such as `--config-dir`.
    """

    config: DictConfig
    overrides: Sequence[str] = ()
    choices: Mapping[str, str | None] = field(default_factory=dict)
    directory: str = "."
    flags: Sequence[str] = ()

    @property
    def own(self) -> list[str]:
        """The overrides of keys that are not Hydra's."""
        return [word for word in self.overrides if not is_hydras(word)]


def all_trusted(config: DictConfig) -> list[str]:
    """Return all packages that a tree trusts, at any key."""
    lists = (value for _, value in trusts(OmegaConf.to_container(config, resolve=False)))
    return sorted({str(each) for value in lists if isinstance(value, list) for each in value})


def trusts(plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value of a key named `trust` in plain data, with its full key."""
    return ((key, value) for name, key, value in nested_items(plain) if name == "trust")
