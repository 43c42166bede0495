"""The error of a model that cannot compute."""

from llm.config.errors import ConfigError


class ModelError(ConfigError, ValueError):
    """A token id has no embedding, or the weights contain NaN."""
