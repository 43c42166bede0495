"""The one error that a model which cannot compute ends in."""

from llm.config.errors import ConfigError


class ModelError(ConfigError, ValueError):
    """A model was given tokens that it has no embedding of, or its weights are not numbers."""
