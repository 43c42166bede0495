"""The words of a command line: what they set, and which of them tell several jobs from one another."""

from collections.abc import Iterable, Sequence


def key_of(word: str) -> str:
    """The full key, dotted, that an override sets or deletes; that of a group is its package."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def values(words: Iterable[str]) -> dict[str, str]:
    """What each override sets, under its key as it was written."""
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def differing(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's words those that not all jobs share; of a single job none."""
    common = set.intersection(*map(set, jobs)) if jobs else set()
    return [[word for word in job if word not in common] for job in jobs]
