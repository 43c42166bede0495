"""The names that keys of a data module have in a command that reads files without one."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llm.data.errors import DataError


@contextmanager
def keys_named(names: Mapping[str, str]) -> Iterator[None]:
    """Name keys in errors and warnings as a command has them: a reader calls its own `data.KEY`.

    Args:
        names: by the key below `data`, the full key of the command.
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
