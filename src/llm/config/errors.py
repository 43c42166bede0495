"""Errors that are told in their own words, without a traceback, and the guess at what was meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something went wrong that the user can mend: the command line prints the message alone.

    Attributes:
        status: what the command exits with.
    """

    status = 1


class ConfigError(UserError):
    """A configuration that cannot be run, with every problem that was found in it.

    Attributes:
        problems: one line each, `full.key: what is wrong; the fix`.
    """

    status = 2

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most likely meant by `word`, or None where nothing is close."""

    def distance(choice: str) -> tuple[int, int]:
        steps = difflib.SequenceMatcher(None, word, choice).get_opcodes()
        edits = sum(max(b - a, d - c) for step, a, b, c, d in steps if step != "equal")
        return edits, abs(len(word) - len(choice))

    close = difflib.get_close_matches(word, list(choices), n=5, cutoff=0.5)
    return min(close, key=distance, default=None)


def suggestion(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """`did you mean …?`, or the list of what there is when nothing is close."""
    choices = sorted(choices)
    guess = nearest(word, choices)
    if guess is not None:
        return f"did you mean {prefix}{guess}?"
    return f"there are {', '.join(choices)}" if choices else "there are none"
