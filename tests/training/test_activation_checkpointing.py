"""Activation checkpointing."""

import pytest
from torch import nn

from llm.config.errors import ConfigError
from llm.training.activation_checkpointing import checkpoint_activations


def test_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="Linear has no attribute `blocks`; set it to false"):
        checkpoint_activations(nn.Linear(2, 2))
