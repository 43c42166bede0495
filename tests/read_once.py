"""A cache of the configs that Hydra reads from packages.

Parsing YAML takes a third of the time of a composition, and the tests compose more than a thousand times.
"""

import pickle
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins


def install() -> None:
    """Let Hydra parse each packaged config once, and return a copy each time, because Hydra changes it."""
    Plugins.instance()  # registers the classes that read configs
    source = SourcesRegistry.instance().resolve("pkg")
    read = source._read_config
    known: dict[tuple[str, ...], bytes] = {}

    def read_once(self: Any, file: Any) -> Any:
        key = (self.provider, self.path, str(file))
        if key not in known:
            known[key] = pickle.dumps(read(self, file))
        return pickle.loads(known[key])

    source._read_config = read_once
