"""The words of a command line: what they set, and which of them tell several jobs from one another."""

import re
from collections.abc import Iterable, Sequence

# Words of earlier versions that are called otherwise now.
RENAMED = {
    "check": "dry_run",
    "task=instruction": "task=sft",
    "task=preference": "task=dpo",
    "callbacks=instruction": "callbacks=sft",
    "callbacks=preference": "callbacks=dpo",
}


def key_of(word: str) -> str:
    """The full key, dotted, that an override sets or deletes; that of a group is its package."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def values(words: Iterable[str]) -> dict[str, str]:
    """What each override sets, under its key as it was written; a text without its quotes."""
    return {key: unquoted(value) for key, _, value in (word.partition("=") for word in words)}


def is_quoted(value: str) -> bool:
    """Whether a value is one text in quotes."""
    return re.fullmatch(r"""'(\\.|[^'\\])*'|"(\\.|[^"\\])*\"""", value, re.DOTALL) is not None


def unquoted(value: str) -> str:
    """A value without the quotes around it, if it is one text in quotes."""
    if not is_quoted(value):
        return value
    mark = value[0]
    inner = re.sub(rf"\\+(?={mark}|$)", lambda found: found[0][: len(found[0]) // 2], value[1:-1])
    return re.sub(r"(\\*)\$\{", lambda found: found[1][: len(found[1]) // 2] + "${", inner)


def escaped_text(text: str) -> str:
    """A text that is not taken for an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def differing_words(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's words those that not all jobs share; of a single job none."""
    common = set.intersection(*map(set, jobs)) if jobs else set()
    return [[word for word in job if word not in common] for job in jobs]
