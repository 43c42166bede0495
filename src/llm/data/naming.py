"""Names of data keys in commands that read files without a data module."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llm.data.errors import DataError


@contextmanager
def rename_keys(names: Mapping[str, str]) -> Iterator[None]:
    """Replace `data.KEY` in errors and warnings by the keys of a command.

    Args:
        names: full key of the command, by the key below `data`.
    """
    pattern = re.compile(rf"(?<![\w/.])data\.({'|'.join(names)})\b")

    def renamed(text: str) -> str:
        return pattern.sub(lambda found: names[found[1]], text)

    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    except DataError as error:
        raise DataError(*map(renamed, error.problems)) from None
    finally:
        for each in caught:
            warnings.warn(renamed(str(each.message)), stacklevel=2)
