"""JSON files of rows: an array of objects, or an object a line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm.data.errors import DataError

Report = Callable[[str, str], None]
Found = tuple[str, dict[str, Any]]


def json_lines(file: Path, text: str, *, report: Report) -> Iterator[Found]:
    """Yield the place and the values of an object a line; blank lines are passed over.

    Raises:
        DataError: the file is one object over several lines.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse_one_object(file, text)
            report(where, f"not JSON ({error})")
        else:
            yield from _objects(where, value, report=report)


def array(file: Path, text: str, *, report: Report) -> Iterator[Found]:
    """Yield the place and the values of the elements of an array, decoded one by one to know where each begins.

    Raises:
        DataError: the array cannot be read to its end.
    """
    decoder = json.JSONDecoder()
    line, counted = 1, 0  # the line of the character at `counted`
    place = _skip(text, text.index("[") + 1)
    more = text[place : place + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, place), place
        where = f"{file}, line {line}"
        try:
            value, end = decoder.raw_decode(text, place)
            place = _skip(text, end)
            if text[place : place + 1] not in (",", "]"):
                raise ValueError("no comma after this element")
        except (ValueError, RecursionError) as error:  # what follows cannot be told apart
            raise DataError(f"{where}: not JSON ({error}); correct the file") from None
        yield from _objects(where, value, report=report)
        more = text[place] == ","
        place = _skip(text, place + 1) if more else place
    if text[place:].strip() != "]":
        raise DataError(f"{file}: not JSON (more follows the array); correct the file")


def _refuse_one_object(file: Path, text: str) -> None:
    """Raise a DataError if the whole file is one object, which no line of it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        lists = ", ".join(key for key, item in value.items() if isinstance(item, list))
        inside = f"; write the array under {lists} to a file of its own" if lists else ""
        raise DataError(
            f"{file}: one JSON object, not rows: an array of objects or an object a line is needed{inside}"
        )


def _skip(text: str, place: int) -> int:
    """The place of the next character that is not white space."""
    while place < len(text) and text[place] in " \t\n":
        place += 1
    return place


def _objects(where: str, value: Any, *, report: Report) -> Iterator[Found]:
    if isinstance(value, dict):
        yield where, value
    else:
        report(where, f"a JSON object is needed, not {type(value).__name__}")
