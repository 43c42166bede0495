"""The one error that a text which cannot be used ends in."""

from llm.config.errors import ConfigError


class DataError(ConfigError, ValueError):
    """The text, its files or a library that reads them are missing or not fit for use.

    It is a ConfigError, so that the command line shows its one line and no traceback, and a
    ValueError to those who build a data module in Python.
    """
