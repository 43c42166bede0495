"""Copying the architecture of pretrained weights into the configuration of a run."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from llm.config.composed import Composed
from llm.config.errors import ConfigError
from llm.config.overrides import key_of
from llm.weights.base import Weights


def adopt_architecture(composed: Composed, weights: Weights | None) -> DictConfig:
    """Return a copy of a run's configuration, with the model, size and tokenizer of the weights that it begins from.

    Raises:
        ConfigError: an override changes one of these, other than a dropout rate.
    """
    config = composed.config.copy()  # values that depend on the data are filled into the copy
    if weights is None:
        return config
    groups = ("model", "size", "tokenizer")
    keys = {word: key_of(word) for word in composed.own}
    given = [word for word, key in keys.items() if key.split(".")[0] in groups]
    dropouts = [word for word in given if keys[word].endswith(".dropout")]
    refused = [word for word in given if word not in dropouts]
    if refused:
        raise ConfigError(
            f"{' '.join(refused)}: the model, its size and its tokenizer are those of {weights.path}; leave these "
            f"overrides out, or train from weights=scratch{_length_hint(config, refused)}"
        )
    chosen = {keys[word]: OmegaConf.select(config, keys[word]) for word in dropouts}
    theirs = weights.config
    for group in groups:
        if group in theirs:
            OmegaConf.update(config, group, theirs[group], merge=False, force_add=True)
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)
    template = OmegaConf.select(theirs, "data.template")
    is_chosen = any(key.startswith("data.template") for key in keys.values())
    if template is not None and "template" in config.data and not is_chosen:
        config.data.template = template  # the model expects the template that it was trained on
    return config


def _length_hint(config: DictConfig, refused: Sequence[str]) -> str:
    """Return the override that shortens examples, if `size.context_length` was refused; otherwise an empty string."""
    lengths = [word for word in refused if key_of(word) == "size.context_length"]
    if not lengths:
        return ""
    section = "weights" if "context_length" in config.weights else "data"
    return f"; for shorter examples: {section}.context_length={lengths[0].partition('=')[2]}"
