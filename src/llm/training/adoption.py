"""Copying the architecture of pretrained weights into the configuration of a run."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llm.config.composed import Composed
from llm.config.errors import ConfigError
from llm.config.overrides import key_of
from llm.runs import ARCHITECTURE, is_architecture, known_choices, recorded_words
from llm.weights.base import Weights

TEMPLATE = "data/template"


def adopt_architecture(composed: Composed, weights: Weights | None) -> DictConfig:
    """Return a copy of a run's configuration, with the model, size and tokenizer of the weights that it begins from.

    Raises:
        ConfigError: an override changes one of these, other than a dropout rate.
    """
    config = composed.config.copy()  # values that depend on the data are filled into the copy
    if weights is None:
        return config
    keys = {word: key_of(word) for word in composed.own}
    given = [word for word in composed.own if is_architecture(word)]
    dropouts = [word for word in given if keys[word].endswith(".dropout")]
    refused = [word for word in given if word not in dropouts]
    if refused:
        raise ConfigError(
            f"{' '.join(refused)}: the model, its size and its tokenizer are those of {weights.path}; leave these "
            f"overrides out, or train from weights=scratch{_length_hint(config, refused)}"
        )
    chosen = {keys[word]: OmegaConf.select(config, keys[word]) for word in dropouts}
    theirs = weights.config
    for group in ARCHITECTURE:
        if group in theirs:
            OmegaConf.update(config, group, theirs[group], merge=False, force_add=True)
    for key, value in chosen.items():
        OmegaConf.update(config, key, value)
    template = OmegaConf.select(theirs, "data.template")
    if template is not None and "template" in config.data and not _chooses_template(composed):
        config.data.template = template  # the model expects the template that it was trained on
    return config


def adopted_options(composed: Composed, weights: Weights | None) -> dict[str, Any]:
    """Return the entries of a record that say which options a run has, with those of the weights.

    Those of published weights are unknown, and left out.
    """
    if weights is None:
        return {"choices": dict(composed.choices)}
    theirs = known_choices(weights.record)
    choices = {k: v for k, v in composed.choices.items() if not is_architecture(k)}
    choices |= {group: option for group, option in theirs.items() if is_architecture(group)}
    if TEMPLATE in choices and TEMPLATE in theirs and not _chooses_template(composed):
        choices[TEMPLATE] = theirs[TEMPLATE]
    given = recorded_words(weights.record, "adopted") | recorded_words(weights.record, "overrides")
    return {
        "choices": choices,
        "adopted": {key: value for key, value in given.items() if is_architecture(key)},
    }


def _chooses_template(composed: Composed) -> bool:
    return any(key_of(word).startswith("data.template") for word in composed.own)


def _length_hint(config: DictConfig, refused: Sequence[str]) -> str:
    """Return the override that shortens examples, if `size.context_length` was refused; otherwise an empty string."""
    lengths = [word for word in refused if key_of(word) == "size.context_length"]
    if not lengths:
        return ""
    section = "weights" if "context_length" in config.weights else "data"
    return f"; for shorter examples: {section}.context_length={lengths[0].partition('=')[2]}"
