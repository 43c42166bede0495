"""JSON files of rows: an array of objects, or one object per line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llm.data.errors import DataError
from llm.data.malformed import Report

Found = tuple[str, dict[str, Any]]


def read_json_lines(file: Path, lines: Iterable[str], *, report: Report) -> Iterator[Found]:
    """Yield the file and line, and the values, of each line's object; skip blank lines."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            report(where, f"not JSON ({error}); correct the line")
        else:
            yield from _objects(where, value, report=report)


def read_json_array(file: Path, text: str, *, report: Report) -> Iterator[Found]:
    """Yield the file and line, and the values, of each element of an array.

    Elements are decoded one by one to know the line of each.

    Raises:
        DataError: the array is not valid JSON.
    """
    decoder = json.JSONDecoder()
    line, counted = 1, 0  # the line number of the character at index `counted`
    at = _skip_spaces(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, at), at
        where = f"{file}, line {line}"
        try:
            value, end = decoder.raw_decode(text, at)
            at = _skip_spaces(text, end)
            if text[at : at + 1] not in (",", "]"):
                raise ValueError("no comma after this element")
        except (ValueError, RecursionError) as error:  # the next element cannot be found
            raise DataError(f"{where}: not JSON ({error}); correct the file") from None
        yield from _objects(where, value, report=report)
        more = text[at] == ","
        at = _skip_spaces(text, at + 1) if more else at
    if text[at:].strip() != "]":
        raise DataError(f"{file}: not JSON (there is more text after the array); correct the file")


def refuse_one_object(file: Path, text: str) -> None:
    """Raise a DataError if the file is one JSON object of several lines."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict) and "\n" in text.strip():
        lists = ", ".join(key for key, item in value.items() if isinstance(item, list))
        inside = f"; write the array under {lists} to a file of its own" if lists else ""
        raise DataError(
            f"{file}: is one JSON object, not rows; write an array of objects or one object per line{inside}"
        )


def _skip_spaces(text: str, at: int) -> int:
    """Return the index of the next character that is not white space."""
    while at < len(text) and text[at] in " \t\n":
        at += 1
    return at


def _objects(where: str, value: Any, *, report: Report) -> Iterator[Found]:
    if isinstance(value, dict):
        yield where, value
    else:
        report(where, f"{type(value).__name__} is not a JSON object; write an object")
