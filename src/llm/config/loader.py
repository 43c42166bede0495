"""The config loader, for our configs and a folder of the user, which may be untrusted.

All compositions use it, also those of Hydra's launchers. It checks files of the user and Hydra's own section before
they have any effect. `llm.config.check` checks the rest of the tree.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import llm.config.run_name  # registers the resolver of the name  # noqa: F401
from llm.config import hydra_section
from llm.config.composed import Composed, trusts
from llm.config.errors import ConfigError, key_of_line, raise_all
from llm.config.overrides import key_of
from llm.config.reading import LARGEST_YAML, read_bytes
from llm.config.resolvers import lookups, resolve_lookups
from llm.config.texts import expand_homes

CONF = "pkg://llm.conf"
FOLDER = "command-line"  # Hydra's name for the provider of --config-dir
MOST_VALUES = 100_000  # in one file
# Hydra raises ValueError for a group that is set to null and for a file that is not UTF-8.
HYDRA_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
DEFAULTS_FIELDS = ("group", "value", "path", "package")  # fields of an entry of a defaults list


def open_loader(config_path: str, config_dir: str | None = None) -> "Loader":
    """Return a loader for primary configs at a location such as `pkg://llm.conf`, and for a folder of the user."""
    version.setbase("1.3")
    setup_globals()
    search_path = create_automatic_config_search_path(None, "llm.__main__", config_path)
    if config_dir is not None:
        search_path.prepend(
            provider=FOLDER,
            path=f"file://{config_dir}",
            anchor=SearchPathQuery(provider="schema"),
        )
    return Loader(search_path, is_packaged=config_dir is None and config_path == CONF)


class Loader(ConfigLoaderImpl):
    """A config loader that refuses keys which a file or a command line may not set.

    Args:
        config_search_path: locations of configs.
        is_packaged: whether all of them are ours or Hydra's.

    Attributes:
        own: overrides that the program itself adds to a command line.
        points: the checked points of a sweep by their overrides, for Hydra's launchers.
    """

    def __init__(self, config_search_path: ConfigSearchPath, *, is_packaged: bool = True) -> None:
        super().__init__(config_search_path)
        self.is_packaged = is_packaged
        self.own: set[str] = set()
        self.points: dict[frozenset[str], Composed] = {}
        if not is_packaged:
            self.repository = CheckedRepository(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,  # noqa: FBT001, FBT002 - Hydra's own signature
        validate_sweep_overrides: bool = True,  # noqa: FBT001, FBT002
    ) -> DictConfig:
        """Compose as Hydra does.

        Raises:
            ConfigError: an override or a file sets a key that it may not set.
        """
        parsed = OverridesParser.create().parse_overrides(overrides)
        raise_all(hydra_section.typed_problems(parsed, self.own))
        config = super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        lines = {key_of_line(line): line for line in self._problems(config, parsed)}
        raise_all(lines.values())
        choices = config.hydra.runtime.choices
        resolve_lookups(config, [each for each in parsed if each.key_or_group not in choices])
        expand_homes(config)
        return config

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Return the point composed for the check; compose it if there is none."""
        point = self.points.get(frozenset(sweep_overrides))
        if point is None:  # chosen by a sweeper that searches
            config = super().load_sweep_config(master_config, sweep_overrides)
            choices = config.hydra.runtime.choices
        else:
            config, choices = point.config.copy(), point.choices
        hydra = master_config.hydra.copy()
        OmegaConf.set_readonly(hydra, value=False)
        with open_dict(hydra), open_dict(config):
            hydra.overrides.task = list(sweep_overrides)
            hydra.runtime.choices.update(choices)
            config.hydra = hydra
        return config

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return the options of a group.

        Hydra copies the repository in each call, in case `hydra.searchpath` adds a folder, which is refused here.
        The copies took 1.1 of the 1.7 processor seconds of `llm train --help`.
        """
        return self.repository.get_group_options(group_name, results_filter)

    def own_options(self, choices: Iterable[tuple[str, str | None]]) -> "Iterator[OwnOption]":
        """Yield the chosen options that are files in the user's folder."""
        for chosen, option in choices:
            group, found = chosen.partition("@")[0], None
            # A file that cannot be read is reported when it is composed.
            with suppress(*HYDRA_ERRORS, ConfigError):
                found = self.repository.load_config(f"{group}/{option}") if option else None
            if found is not None and found.provider == FOLDER:
                key = _package(found, group)
                file = f"{found.path.removeprefix('file://')}/{group}/{option}.yaml"
                yield OwnOption(file, key, OmegaConf.to_container(found.config, resolve=False))

    def package_of(self, group: str, option: str) -> str:
        """Return the key under which an option of a group is placed; empty for the root."""
        found = self.repository.load_config(f"{group}/{option}")
        return group.replace("/", ".") if found is None else _package(found, group)

    def _problems(self, config: DictConfig, parsed: Sequence[Override]) -> Iterator[str]:
        """Yield a line for each key of Hydra's, and each `trust`, that only a command line may set."""
        choices = dict(config.hydra.runtime.choices)
        typed = {
            key_of(str(each.input_line)) for each in parsed if each.key_or_group not in choices
        }
        section: Any = OmegaConf.to_container(config.hydra, resolve=False)
        trust: Any = config.get("trust") if "trust" in typed else None
        # `llm.config.check` reports a value that is not a list.
        trust = trust if isinstance(trust, ListConfig) else ()
        yield from hydra_section.target_problems(section, trust)
        if self.is_packaged:
            return
        words = section["overrides"]["hydra"] + section["overrides"]["task"]
        if sorted(words) != sorted(str(each.input_line) for each in parsed):
            yield "hydra.overrides: a file of a --config-dir may not set it; remove it there"
        yield from hydra_section.file_problems(section, references(*_options(choices)), typed)
        yield from _trust_problems(config, typed)

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: Any
    ) -> None:
        """Refuse a search path in a file: Hydra would import or read it immediately."""
        primary = repo.load_config(config_path=config_name) if config_name is not None else None
        if primary is not None and OmegaConf.select(primary.config, "hydra.searchpath"):
            raise ConfigError(
                f"hydra.searchpath: {config_name}.yaml may not set it; name the folder with --config-dir"
            )


class OwnOption(NamedTuple):
    """An option of a group that is a file of the user.

    Attributes:
        file: path of the file.
        key: the key of the tree that gets its values; empty for the root.
        values: its own values, without its defaults.
    """

    file: str
    key: str
    values: Any

    def sets(self, key: str) -> bool:
        """Return whether this file sets a full key, such as `model.dim` or `data.path[0]`."""
        if key == self.key:
            return True
        prefix, value = f"{self.key}." if self.key else "", self.values
        if not key.startswith(prefix):
            return False
        for word in key.partition("[")[0].removeprefix(prefix).split("."):
            if not isinstance(value, dict) or word not in value:
                return False
            value = value[word]
        return True


class CheckedRepository(ConfigRepository):
    """A repository that checks the files in the user's folder."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Load a file.

        Raises:
            ConfigError: the file is outside the folder, or contains a lookup such as `${oc.env:HOME}`.
        """
        if ".." in PurePosixPath(config_path).parts:
            raise ConfigError(
                f"{config_path}: is outside the folder of configs; use a path without '..'"
            )
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            _require_few_values(Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml")
        found = super().load_config(config_path)
        if found is None or found.provider not in (FOLDER, "main"):
            return found
        options = [
            [getattr(each, name, None) for name in DEFAULTS_FIELDS]
            for each in found.defaults_list or ()
        ]
        plain = OmegaConf.to_container(found.config, resolve=False)
        file = f"{found.path.removeprefix('file://')}/{config_path.removesuffix('.yaml')}.yaml"
        lines = [
            f"{file}: {text} would read a value from this machine; write the value itself, or type the key on the "
            "command line"
            for text in lookups([plain, options])
        ]
        raise_all(lines)
        return found


def _require_few_values(file: Path) -> None:
    """Refuse a file that is too large, or whose YAML aliases expand to too many values.

    Raises:
        ConfigError: the file is too large or nested too deeply.
    """
    try:
        content = read_bytes(file, LARGEST_YAML)
        with suppress(yaml.YAMLError):  # reported when Hydra reads the file
            if _values(yaml.compose(content, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
                raise ConfigError(
                    f"{file}: has more than {MOST_VALUES:,} values, counting each use of a YAML alias (*name); "
                    "use fewer"
                )
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply; use fewer levels") from None


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Return the number of values of a YAML node with its aliases expanded; infinity if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        content = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = content if isinstance(node, yaml.SequenceNode) else (value for _, value in content)
        known[id(node)] = 1 + sum(_values(child, known) for child in pairs)
    return known[id(node)]


def _options(choices: dict[str, Any]) -> tuple[str, ...]:
    """Return the chosen options of Hydra's own groups, as overrides."""
    groups = sorted(name for name in choices if name.startswith("hydra/") and choices[name])
    return tuple(f"{name}={choices[name]}" for name in groups)


@lru_cache
def references(*options: str) -> tuple[dict[str, Any], ...]:
    """Return Hydra's section from packaged files only: for our commands, and Hydra's default.

    Raises:
        ConfigError: an option is not in an installed package.
    """
    loader = open_loader(CONF)
    lines = [
        f"{option}: is not installed; an option of Hydra's own groups must come from an installed package"
        for option in options
        for group, _, name in (option.partition("="),)
        if name not in loader.get_group_options(group)
    ]
    raise_all(lines)
    loader.own |= {*options}
    composed = [
        loader.load_configuration(name, list(options), run_mode=RunMode.RUN)
        for name in ("train", "generate", None)
    ]
    sections: Any = [OmegaConf.to_container(each.hydra, resolve=False) for each in composed]
    return tuple(sections)


def _trust_problems(config: DictConfig, typed: set[str]) -> Iterator[str]:
    """Yield a line for each `trust` that a file sets."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for key, value in trusts({name: plain[name] for name in plain if name != "hydra"}):
        if value not in (None, [], "${trust}") and key not in typed:
            yield f"{key}: a file may not set it; type trust=[…] on the command line"


def _package(found: ConfigResult, group: str) -> str:
    """Return the key under which a config of a group is placed; empty for the root."""
    package = found.header.get("package") or "_group_"
    return {"_global_": "", "_group_": group.replace("/", ".")}.get(package, package)
