"""Rows that cannot be used: refused or left out, and described in as few lines as say it."""

import re
import warnings
from typing import Literal, NamedTuple

from llm.data.errors import DataError

SHOWN = 10  # kinds of problems that a message lists
NUMBER = re.compile(r"\d[\d,]*")


class Problem(NamedTuple):
    """One kind of problem: the first row that has it, and the number of rows that do."""

    first: str
    rows: int


class Malformed:
    """Collects the rows that cannot be used.

    Args:
        policy: `stop` refuses the data and names the rows; `skip` leaves them out and counts them.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop") -> None:
        self.policy: Literal["stop", "skip"] = policy
        self._problems: dict[str, Problem] = {}

    @property
    def count(self) -> int:
        """The number of malformed rows."""
        return sum(problem.rows for problem in self._problems.values())

    def add(self, where: str, problem: str) -> None:
        """Note one row, by its place and what is wrong with it; problems are alike if only numbers differ."""
        kind = NUMBER.sub("0", problem)
        first, count = self._problems.get(kind, Problem(f"{where}: {problem}", 0))
        self._problems[kind] = Problem(first, count + 1)

    def close(self, what: str, usable: int) -> int:
        """Report what was found, after everything is read.

        Args:
            what: what the rows are called together, such as `messages`.
            usable: how many rows can be used.

        Returns:
            How many rows are left out.

        Raises:
            DataError: a row is malformed and the policy is to stop, or no row can be used.
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
        """Raise a DataError: one line if all rows fail alike, otherwise a line for each kind of problem."""
        problems = list(self._problems.values())
        if len(problems) == 1:
            raise DataError(f"{summary}; {'all alike, ' * (self.count > 1)}{problems[0].first}")
        lines = [
            first + (f" (and {count - 1:,} more like it)" if count > 1 else "")
            for first, count in problems[:SHOWN]
        ]
        left = sum(problem.rows for problem in problems[SHOWN:])
        raise DataError(summary, *lines, *([f"… and {left:,} more"] if left else []))
