"""Models as a command line would compose them."""

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from llm.models.gpt import GPT


@pytest.fixture(scope="session")
def build() -> Callable[..., GPT]:
    """build("model=llama", "model/norm=layer", …): a model of size nano and 97 tokens, to test."""

    def build(*overrides: str, vocab_size: int = 97) -> GPT:
        given = {override.split("=")[0] for override in overrides}
        defaults = [o for o in ("model=gpt2", "size=nano") if o.split("=")[0] not in given]
        groups = [f"+{o}" if o.split("=")[0] in ("model", "size") else o for o in overrides]
        with initialize_config_module(config_module="llm.conf", version_base="1.3"):
            config = compose(overrides=[*(f"+{o}" for o in defaults), *groups])
        return instantiate(config.model, vocab_size=vocab_size)

    return build
