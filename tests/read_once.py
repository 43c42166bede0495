"""Caches of what Hydra reads and merges from packages.

The tests compose some thousand times, which takes a fifth of a second each without these caches.
"""

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins


def install() -> None:
    """Let Hydra read each packaged config once, and merge each selection of them once.

    Hydra changes configs, so each caller gets a copy.
    """
    Plugins.instance()  # registers the classes that read configs
    source: Any = SourcesRegistry.instance().resolve("pkg")
    source._read_config = reading_once(source._read_config)
    tree: Any = defaults_list
    tree._create_interpolation_map = map_if_needed(tree._create_interpolation_map)
    loading: Any = config_loader_impl
    loading.create_defaults_list = selecting_once(loading.create_defaults_list)
    loader: Any = loading.ConfigLoaderImpl
    loader._compose_config_from_defaults_list = merging_once(
        loader._compose_config_from_defaults_list
    )


def reading_once(read: Any) -> Any:
    """Return a function that parses each file once."""
    known: dict[tuple[str, ...], bytes] = {}

    def read_once(self: Any, file: Any) -> Any:
        key = (self.provider, self.path, str(file))
        if key not in known:
            known[key] = pickle.dumps(read(self, file))
        return pickle.loads(known[key])

    return read_once


def map_if_needed(create_map: Any) -> Any:
    """Return a function that collects the choices for interpolations only if there are interpolations."""

    def create(overrides: Any, defaults: Sequence[Any], self_added: bool) -> Any:
        if any(default.is_interpolation() for default in defaults):
            return create_map(overrides, defaults, self_added)
        return None

    return create


def sources_of(repo: Any) -> tuple[tuple[str, str], ...] | None:
    """Return the places of the configs; None if files of one may change."""
    sources = repo.get_sources()
    if any(source.scheme() == "file" for source in sources):
        return None
    return tuple((source.provider, source.path) for source in sources)


def selecting_once(create: Any) -> Any:
    """Return a function that finds the configs of each choice of groups once."""
    known: dict[Any, Any] = {}

    def select_once(
        repo: Any, config_name: Any, overrides_list: Sequence[Any], **flags: Any
    ) -> Any:
        sources = sources_of(repo)
        if sources is None:
            return create(repo, config_name, overrides_list, **flags)
        choices, values = [], []
        for each in overrides_list:
            if not each.is_sweep_override():
                is_choice = repo.group_exists(each.key_or_group)
                is_choice = is_choice and not isinstance(each.value(), dict)
                (choices if is_choice else values).append(each)
        words = tuple(each.input_line for each in choices)
        key = (sources, config_name, words, *flags.items())
        if key not in known:
            known[key] = create(repo, config_name, choices, **flags)
        return replace(known[key], config_overrides=values)

    return select_once


def merging_once(merge: Any) -> Any:
    """Return a function that merges each selection of configs once."""
    known: dict[Any, bytes] = {}

    def merge_once(self: Any, defaults: Sequence[Any], repo: Any) -> Any:
        sources = sources_of(repo)
        if sources is None:
            return merge(self, defaults, repo)
        key = (sources, repr(defaults))
        if key not in known:
            known[key] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(known[key])

    return merge_once
