"""The overrides of a command line: their keys and values."""

import re
from collections.abc import Iterable, Sequence

# Words of an earlier version, with their new names.
RENAMED = {
    "check": "dry_run",
    "task=instruction": "task=sft",
    "task=preference": "task=dpo",
    "callbacks=instruction": "callbacks=sft",
    "callbacks=preference": "callbacks=dpo",
}


def key_of(word: str) -> str:
    """Return the dotted key that an override sets or deletes; for a group, the key of its section."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def is_hydras(word: str) -> bool:
    """Return whether an override sets one of Hydra's own keys."""
    return key_of(word).partition(".")[0] == "hydra"


def values(words: Iterable[str]) -> dict[str, str]:
    """Return the value of each override, without quotes, by its key as written."""
    return {key: unquoted(value) for key, _, value in (word.partition("=") for word in words)}


def is_quoted(value: str) -> bool:
    """Return whether a value is one quoted text."""
    return re.fullmatch(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", value, re.DOTALL) is not None


def unquoted(value: str) -> str:
    """Return a value without its quotes, if it is one quoted text."""
    if not is_quoted(value):
        return value
    mark = value[0]
    inner = re.sub(rf"\\+(?={mark}|$)", lambda found: found[0][: len(found[0]) // 2], value[1:-1])
    return re.sub(r"(\\*)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", inner)


def escaped_text(text: str) -> str:
    """Return a text with `${` escaped, so that OmegaConf does not read an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def differing_words(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return for each job the words that not all jobs have; for a single job, none."""
    common = set.intersection(*map(set, jobs)) if jobs else set()
    return [[word for word in job if word not in common] for job in jobs]
