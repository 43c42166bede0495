"""Errors that are printed without a traceback, and suggestions for misspelt words."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can fix: the command line prints only its message.

    Attributes:
        status: exit status of the command.
    """

    status = 1


class ConfigError(UserError):
    """An error in a configuration.

    Attributes:
        problems: all problems, one line each: `full.key: what is wrong; the fix`.
    """

    status = 2

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


@contextmanager
def collecting(problems: list[str]) -> Iterator[None]:
    """Add the problems of a ConfigError to a list instead of raising it."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems


def raise_all(problems: Iterable[str]) -> None:
    """Raise a ConfigError with all problems, each once, if there are any."""
    if lines := dict.fromkeys(problems):
        raise ConfigError(*lines)


def key_of_line(line: str) -> str:
    """Return the key that a problem is about, at the beginning of its line."""
    return line.partition(": ")[0]


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that is most similar to `word`; None if none is similar."""

    def distance(choice: str) -> tuple[int, int]:
        steps = difflib.SequenceMatcher(None, word, choice).get_opcodes()
        edits = sum(max(b - a, d - c) for step, a, b, c, d in steps if step != "equal")
        return edits, abs(len(word) - len(choice))

    # Two exchanged letters in a word of three are similar enough: dmi and dim have a similarity of 0.67.
    close = difflib.get_close_matches(word, list(choices), n=5, cutoff=0.65)
    return min(close, key=distance, default=None)


def suggestion(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """Return `did you mean …?`, or the list of all choices if none is similar."""
    choices = sorted(choices)
    guess = nearest(word, choices)
    if guess is not None:
        return f"did you mean {prefix}{guess}?"
    return f"there are {', '.join(choices)}" if choices else "there are none"
