"""Interpolations that read a value from outside the configuration (lookups), such as `${oc.env:HOME}`.

The value is written to the files of a run and to W&B. So only the command line may have lookups. Files of the user may
refer to other keys and to Hydra's choices.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from llm.config.overrides import escaped_text
from llm.config.plain import nested_items

# Resolvers that only work during a composition: Hydra's and ours.
COMPOSED = {"hydra", "run_name", "now", "python_version"}
# Resolvers that only read the configuration, the clock and Python's version.
HARMLESS = COMPOSED | {"oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values"}


def lookups(plain: Any) -> Iterator[str]:
    """Yield the texts in plain data that contain lookups. Keys of dictionaries are not searched."""
    for _, _, text in nested_items([plain]):
        if isinstance(text, str) and "${" in text and not _resolvers(text) <= HARMLESS:
            yield text


def resolve_lookups(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Replace each lookup on the command line by its value in the composed tree, so that it is read once."""
    for override in overrides:
        key = override.key_or_group
        typed = OmegaConf.select(config, key) if _has_lookup(override) else None
        if typed is not None:
            plain = (
                OmegaConf.to_container(typed, resolve=True) if OmegaConf.is_config(typed) else typed
            )
            OmegaConf.update(config, key, escaped(plain), merge=False)


def resolve_composition(config: DictConfig) -> DictConfig:
    """Return a copy of a composed tree with Hydra's and our resolvers resolved; references are kept."""
    config = config.copy()
    for key, text in list(_texts(OmegaConf.to_container(config, resolve=False), "")):
        if "${" in text and _resolvers(text) & COMPOSED:
            OmegaConf.update(config, key, escaped(OmegaConf.select(config, key)))
    return config


def _texts(plain: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the texts in plain data with their full keys."""
    if isinstance(plain, str):
        yield key, plain
    elif isinstance(plain, dict | list):
        for name, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from _texts(value, f"{key}[{name}]" if key else str(name))


def _has_lookup(override: Override) -> bool:
    if override.is_delete() or override.is_sweep_override() or override.is_hydra_override():
        return False
    return any(lookups(override.value()))


def escaped(plain: Any) -> Any:
    """Return plain data with all texts escaped, so that they contain no interpolation."""
    if isinstance(plain, dict):
        return {name: escaped(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [escaped(value) for value in plain]
    return escaped_text(plain) if isinstance(plain, str) else plain


def has_interpolation(text: str) -> bool:
    """Return whether a text contains an interpolation that is not escaped."""
    return re.search(r"(?<!\\)(?:\\\\)*\$\{", text) is not None


def _resolvers(text: str) -> set[str]:
    """Return the names of the resolvers in a text. A text that cannot be parsed counts as its own resolver."""
    try:
        return set(_called(parse(text)))
    except GrammarParseError:
        return {text}


def _called(tree: Any) -> Iterator[str]:
    if isinstance(tree, OmegaConfGrammarParser.ResolverNameContext):
        yield tree.getText()
    for child in getattr(tree, "children", None) or ():
        yield from _called(child)
