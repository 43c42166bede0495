"""Rows that cannot be used, grouped by problem in an error or a warning."""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Literal

from llm.data.errors import DataError

# A function that is called with the file and line of a row, and what is wrong with it.
Report = Callable[[str, str], None]
SHOWN = 10  # kinds of problems in a message
NUMBER = re.compile(r"\d[\d,]*")


class Malformed:
    """A collection of rows that cannot be used.

    Args:
        policy: `stop` raises an error that names the rows; `skip` leaves them out and counts them.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop") -> None:
        self.policy: Literal["stop", "skip"] = policy
        self._first: dict[str, str] = {}  # the first row of each kind of problem
        self._rows: Counter[str] = Counter()  # the number of rows of each kind

    @property
    def count(self) -> int:
        """The number of malformed rows."""
        return self._rows.total()

    def add(self, where: str, problem: str) -> None:
        """Add the file and line of a row, and its problem. Problems that differ only in numbers are one kind."""
        kind = NUMBER.sub("0", problem)
        self._first.setdefault(kind, f"{where}: {problem}")
        self._rows[kind] += 1

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
        first = next(iter(self._first.values()))
        if not usable:
            self._refuse(
                f"malformed {what}: no row can be used ({self.count:,} rows); correct them"
            )
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
        problems = [(self._first[kind], self._rows[kind]) for kind in self._first]
        if len(problems) == 1:
            raise DataError(f"{summary}; {'all alike, ' * (self.count > 1)}{problems[0][0]}")
        lines = [
            first + (f" (and {rows - 1:,} more like it)" if rows > 1 else "")
            for first, rows in problems[:SHOWN]
        ]
        left = sum(rows for _, rows in problems[SHOWN:])
        raise DataError(summary, *lines, *([f"… and {left:,} more"] if left else []))
