"""Keys of a data module in the messages of commands that name them differently."""

import warnings

import pytest

from llm.data.errors import DataError
from llm.data.naming import rename_keys

NAMES = {"text": "rows.text", "columns": "rows.columns"}


def test_errors_name_the_keys_of_the_command():
    with pytest.raises(DataError) as error, rename_keys(NAMES):
        raise DataError("a.csv: set data.text or 'data.columns=[x]'", "data.texts, my/data.text")
    assert error.value.problems == (
        "a.csv: set rows.text or 'rows.columns=[x]'",
        "data.texts, my/data.text",
    )


def test_warnings_name_the_keys_of_the_command_even_before_an_error():
    def read() -> None:
        with rename_keys(NAMES):
            warnings.warn("data.text: blank", stacklevel=1)
            raise DataError("data.path: missing")

    with pytest.warns(UserWarning, match=r"^rows\.text: blank$"), pytest.raises(DataError):
        read()


def test_other_errors_are_unchanged():
    with pytest.raises(ValueError, match=r"^data\.text$"), rename_keys(NAMES):
        raise ValueError("data.text")
