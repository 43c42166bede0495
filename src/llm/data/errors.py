"""The error of data that cannot be used."""

from llm.config.errors import ConfigError


class DataError(ConfigError, ValueError):
    """An error of data: the text, its files or a library that reads them is missing or cannot be used.

    As a ConfigError, the command line prints it in one line, without a traceback.
    """
