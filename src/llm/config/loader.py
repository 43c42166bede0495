"""Hydra's loader over our configs and a user's own, who may have them from a stranger.

Every composition goes through it, Hydra's own in a launcher's process too. Files that are not ours and the
section that Hydra itself obeys are judged here, before anybody acts on them; the rest of the tree is judged by
the check.
"""

import math
from collections.abc import Iterator, Sequence
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
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

import llm.config.run_name  # registers the resolver of the name  # noqa: F401
from llm.config import hydra_section
from llm.config.composed import Composed, trusts
from llm.config.errors import ConfigError
from llm.config.overrides import key_of
from llm.config.reading import LARGEST_YAML, read_bytes
from llm.config.resolvers import lookups, resolve_lookups
from llm.config.texts import expand_homes

CONF = "pkg://llm.conf"
FOLDER = "command-line"  # Hydra's name for who adds --config-dir
MOST_VALUES = 100_000  # of one file
PARTS = ("group", "value", "path", "package")  # of an entry of a defaults list


def open_loader(config_path: str, config_dir: str | None = None) -> "Loader":
    """The loader over our configs.

    Args:
        config_path: where the primary configs lie, such as `pkg://llm.conf`.
        config_dir: a user's own folder of configs beside them.
    """
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
    """Composes, and refuses what a file or a command line may not say.

    Args:
        config_search_path: where configs lie.
        is_packaged: whether all of them are ours or Hydra's.

    Attributes:
        own: words that the program itself adds to a command line.
        points: what was composed and checked already, by its overrides, for Hydra's launchers.
    """

    def __init__(self, config_search_path: ConfigSearchPath, *, is_packaged: bool = True) -> None:
        super().__init__(config_search_path)
        self.is_packaged = is_packaged
        self.own: set[str] = set()
        self.points: dict[frozenset[str], Composed] = {}
        if not is_packaged:
            self.repository = JudgedRepository(config_search_path)

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
            ConfigError: a word or a file says what it may not.
        """
        parsed = OverridesParser.create().parse_overrides(overrides)
        if lines := list(hydra_section.typed_problems(parsed, self.own)):
            raise ConfigError(*lines)
        config = super().load_configuration(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        lines = {line.partition(": ")[0]: line for line in self._problems(config, parsed)}
        if lines:
            raise ConfigError(*lines.values())
        choices = config.hydra.runtime.choices
        resolve_lookups(config, [each for each in parsed if each.key_or_group not in choices])
        expand_homes(config)
        return config

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Answer a launcher with the point that was composed for the check, where there is one."""
        point = self.points.get(frozenset(sweep_overrides))
        if point is None:  # what a sweeper has found
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

    def own_option(self, group: str, option: str) -> "OwnOption | None":
        """The option of a group, if it is a file of the user's own folder."""
        found = self.repository.load_config(f"{group}/{option}")
        if found is None or found.provider != FOLDER:
            return None
        package = found.header.get("package") or "_group_"
        place = {"_global_": "", "_group_": group.replace("/", ".")}.get(package, package)
        file = f"{found.path.removeprefix('file://')}/{group}/{option}.yaml"
        return OwnOption(file, place, OmegaConf.to_container(found.config, resolve=False))

    def _problems(self, config: DictConfig, parsed: Sequence[Override]) -> Iterator[str]:
        """What the composed tree says, of Hydra or of trust, that only a person may say."""
        choices = dict(config.hydra.runtime.choices)
        typed = {
            key_of(str(each.input_line)) for each in parsed if each.key_or_group not in choices
        }
        section: Any = OmegaConf.to_container(config.hydra, resolve=False)
        trust = config.get("trust") or () if "trust" in typed else ()
        yield from hydra_section.target_problems(section, "hydra", trust)
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
        """Refuse a search path in a file: Hydra would import or read what it names at once."""
        primary = repo.load_config(config_path=config_name) if config_name is not None else None
        if primary is not None and OmegaConf.select(primary.config, "hydra.searchpath"):
            raise ConfigError(
                f"hydra.searchpath: {config_name}.yaml may not set it; name the folder with --config-dir"
            )


class OwnOption(NamedTuple):
    """An option of a group that is a file of the user's own.

    Attributes:
        file: its path.
        place: the key at which its values go into the tree; empty at the top.
        values: what it says itself.
    """

    file: str
    place: str
    values: Any

    def sets(self, key: str) -> bool:
        """Whether a full key, such as `model.dim` or `data.path[0]`, is one of this file's, or its place."""
        if key == self.place:
            return True
        before, value = f"{self.place}." if self.place else "", self.values
        if not key.startswith(before):
            return False
        for word in key.partition("[")[0].removeprefix(before).split("."):
            if not isinstance(value, dict) or word not in value:
                return False
            value = value[word]
        return True


class JudgedRepository(ConfigRepository):
    """A repository that reads files of a user's own folder with care."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Load a file.

        Raises:
            ConfigError: it lies outside the folder, or looks up what is no business of a file's.
        """
        if ".." in PurePosixPath(config_path).parts:
            raise ConfigError(f"{config_path}: leads out of the folder of configs; name it inside")
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":
            _require_few_values(Path(source.path) / f"{config_path.removesuffix('.yaml')}.yaml")
        found = super().load_config(config_path)
        if found is None or found.provider not in (FOLDER, "main"):
            return found
        options = [
            [getattr(each, name, None) for name in PARTS] for each in found.defaults_list or ()
        ]
        plain = OmegaConf.to_container(found.config, resolve=False)
        file = f"{found.path.removeprefix('file://')}/{config_path.removesuffix('.yaml')}.yaml"
        lines = [
            f"{file}: {text} would be looked up on this machine; write the value itself, or type it on the command line"
            for text in lookups([plain, options])
        ]
        if lines:
            raise ConfigError(*lines)
        return found


def _require_few_values(file: Path) -> None:
    """Refuse a file that is too large, or that aliases unfold to more than memory holds.

    Raises:
        ConfigError: it is, or they do.
    """
    try:
        content = read_bytes(file, LARGEST_YAML)
        with suppress(yaml.YAMLError):  # reported when Hydra reads the file
            if _values(yaml.compose(content, Loader=yaml.SafeLoader), {}) > MOST_VALUES:
                raise ConfigError(
                    f"{file}: has more than {MOST_VALUES:,} values, those of YAML aliases (*name) counted each "
                    "time; a config needs fewer"
                )
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply; a config needs a few levels") from None


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a YAML node has with its aliases written out; infinitely many inside of itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        content = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = content if isinstance(node, yaml.SequenceNode) else (value for _, value in content)
        known[id(node)] = 1 + sum(_values(child, known) for child in pairs)
    return known[id(node)]


def _options(choices: dict[str, Any]) -> tuple[str, ...]:
    """The options of Hydra's own groups, as overrides."""
    groups = sorted(name for name in choices if name.startswith("hydra/") and choices[name])
    return tuple(f"{name}={choices[name]}" for name in groups)


@lru_cache
def references(*options: str) -> tuple[dict[str, Any], ...]:
    """Hydra's section of packaged files alone: as our commands have it, and as Hydra has it.

    Raises:
        ConfigError: an option is not packaged.
    """
    loader = open_loader(CONF)
    lines = [
        f"{option}: is not packaged; an option of Hydra's own groups has to be installed"
        for option in options
        for group, _, name in (option.partition("="),)
        if name not in loader.get_group_options(group)
    ]
    if lines:
        raise ConfigError(*lines)
    loader.own |= {*options}
    composed = [
        loader.load_configuration(name, list(options), run_mode=RunMode.RUN)
        for name in ("train", "generate", None)
    ]
    sections: Any = [OmegaConf.to_container(each.hydra, resolve=False) for each in composed]
    return tuple(sections)


def _trust_problems(config: DictConfig, typed: set[str]) -> Iterator[str]:
    """Packages that a file would have trusted."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for key, value in trusts({name: plain[name] for name in plain if name != "hydra"}):
        if value not in (None, [], "${trust}") and key not in typed:
            yield f"{key}: a file may not say what is trusted; type trust=[…] on the command line"
