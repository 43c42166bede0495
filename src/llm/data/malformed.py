"""Rows that cannot be used: an error or a warning that groups them by problem."""

import re
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

from llm.data.errors import DataError

Report = Callable[
    [str, str], None
]  # called with the file and line of a row, and what is wrong with it
SHOWN = 10  # kinds of problems in a message
NUMBER = re.compile(r"\d[\d,]*")


class Problem(NamedTuple):
    """A kind of problem: its first row, and the number of its rows."""

    first: str
    rows: int


class Malformed:
    """A collection of rows that cannot be used.

    Args:
        policy: `stop` raises an error that names the rows; `skip` leaves them out and counts them.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop") -> None:
        self.policy: Literal["stop", "skip"] = policy
        self._problems: dict[str, Problem] = {}

    @property
    def count(self) -> int:
        """The number of malformed rows."""
        return sum(problem.rows for problem in self._problems.values())

    def add(self, where: str, problem: str) -> None:
        """Add a row by its file and line, and its problem. Problems that differ only in numbers are one kind."""
        kind = NUMBER.sub("0", problem)
        first, count = self._problems.get(kind, Problem(f"{where}: {problem}", 0))
        self._problems[kind] = Problem(first, count + 1)

    def close(self, what: str, usable: int) -> int:
        """Report the malformed rows, after all are read.

        Args:
            what: name of the rows, such as `messages`.
            usable: number of usable rows.

        Returns:
            the number of rows left out.

        Raises:
            DataError: a row is malformed and the policy is `stop`, or no row is usable.
        """
        if not self.count:
            return 0
        first = next(iter(self._problems.values())).first
        if not usable:
            self._refuse(f"malformed {what}: no row can be used ({self.count:,} rows)")
        if self.policy == "stop":
            self._refuse(
                f"malformed {what}: {self.count:,} of {self.count + usable:,} rows; correct them, or leave them out "
                "with data.malformed=skip (malformed=skip for the test_path of llm evaluate)"
            )
        warnings.warn(
            f"malformed {what}: {self.count:,} left out; the first: {first}", stacklevel=2
        )
        return self.count

    def _refuse(self, summary: str) -> None:
        """Raise a DataError: one line if there is one kind of problem, otherwise a line for each kind."""
        problems = list(self._problems.values())
        if len(problems) == 1:
            raise DataError(f"{summary}; {'all alike, ' * (self.count > 1)}{problems[0].first}")
        lines = [
            first + (f" (and {count - 1:,} more like it)" if count > 1 else "")
            for first, count in problems[:SHOWN]
        ]
        left = sum(problem.rows for problem in problems[SHOWN:])
        raise DataError(summary, *lines, *([f"… and {left:,} more"] if left else []))
