"""Interpolations that look something up outside the configuration, such as `${oc.env:HOME}`.

What they find ends up in the files of a run, in samples and on W&B. So they count where a person typed them,
and files of configs have other keys, and Hydra's choices, to refer to.
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

# Resolvers that belong to one composition: Hydra's own, and ours.
COMPOSED = {"hydra", "run_name", "now", "python_version"}
# Resolvers that read nothing but the configuration, the clock and Python's version.
HARMLESS = COMPOSED | {"oc.select", "oc.deprecated", "oc.dict.keys", "oc.dict.values"}


def lookups(plain: Any) -> Iterator[str]:
    """The texts in plain data, keys of dictionaries apart, that would look something up elsewhere."""
    if isinstance(plain, str):
        if "${" in plain and not _resolvers(plain) <= HARMLESS:
            yield plain
    elif isinstance(plain, dict | list):
        for value in plain.values() if isinstance(plain, dict) else plain:
            yield from lookups(value)


def resolve_lookups(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Write what a typed value finds into the composed tree in its place, so that it is looked up once.

    Args:
        config: the tree, into which the overrides went last.
        overrides: those of the command line.
    """
    for override in overrides:
        key = override.key_or_group
        typed = OmegaConf.select(config, key) if _looks_up(override) else None
        if typed is not None:
            plain = (
                OmegaConf.to_container(typed, resolve=True) if OmegaConf.is_config(typed) else typed
            )
            OmegaConf.update(config, key, escaped(plain), merge=False)


def settle(config: DictConfig) -> DictConfig:
    """A copy of a composed tree in which what Hydra looks up stands as plain values; references stay."""
    config = config.copy()
    for key, text in list(_texts(OmegaConf.to_container(config, resolve=False), "")):
        if "${" in text and _resolvers(text) & COMPOSED:
            OmegaConf.update(config, key, escaped(OmegaConf.select(config, key)))
    return config


def _texts(plain: Any, key: str) -> Iterator[tuple[str, str]]:
    """The texts in plain data with their full keys."""
    if isinstance(plain, str):
        yield key, plain
    elif isinstance(plain, dict | list):
        for name, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from _texts(value, f"{key}[{name}]" if key else str(name))


def _looks_up(override: Override) -> bool:
    if override.is_delete() or override.is_sweep_override() or override.is_hydra_override():
        return False
    return any(lookups(override.value()))


def escaped(plain: Any) -> Any:
    """Plain data whose texts are not taken for interpolations."""
    if isinstance(plain, dict):
        return {name: escaped(value) for name, value in plain.items()}
    if isinstance(plain, list):
        return [escaped(value) for value in plain]
    return escaped_text(plain) if isinstance(plain, str) else plain


def refers(text: str) -> bool:
    """Whether a text has an interpolation in it, and not only what looks like one, escaped."""
    return re.search(r"(?<!\\)(?:\\\\)*\$\{", text) is not None


def _resolvers(text: str) -> set[str]:
    """The names of the resolvers that a text calls; a text that cannot be read calls itself."""
    try:
        return set(_called(parse(text)))
    except GrammarParseError:
        return {text}


def _called(tree: Any) -> Iterator[str]:
    if isinstance(tree, OmegaConfGrammarParser.ResolverNameContext):
        yield tree.getText()
    for child in getattr(tree, "children", None) or ():
        yield from _called(child)
