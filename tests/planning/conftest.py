"""Configurations of `llm train`, composed from a command line."""

from collections.abc import Callable
from functools import partial

import pytest
from omegaconf import DictConfig


@pytest.fixture(scope="session")
def composed() -> Callable[[str], DictConfig]:
    """composed("model=gpt2 size=nano"): return the composed tree, with 97 tokens by default."""
    from llm.config.composition import compose
    from llm.config.loader import open_loader

    compose_words = partial(compose, open_loader("pkg://llm.conf"), "train")

    def composed(words: str = "") -> DictConfig:
        given = words.split()
        known = any(word.startswith(("tokenizer=", "model.vocab_size=")) for word in given)
        return compose_words([*given, *([] if known else ["model.vocab_size=97"])]).config

    return composed
