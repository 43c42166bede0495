"""Fixtures that every slice of the tests shares."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# One thread a process: the tests run in several processes, and threads that wait for one another's cores
# cost more than they give. Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# A folder beside the checkout that holds published data files; LLM_TEST_DATA points elsewhere.
SHARED_DATA = Path(os.environ.get("LLM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published data files, or a skip that says it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no published data files at {SHARED_DATA}; set LLM_TEST_DATA to their folder")
    return SHARED_DATA


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """build("model=llama", "model/norm=layer", …): a GPT as a command line would compose it.

    Of size nano and 97 tokens unless said otherwise. The imports wait for the first call: this file is read
    before the run-time check of shapes is in place, and what is imported now would go unchecked.
    """

    def build(*overrides: str, vocab_size: int = 97) -> Any:
        from hydra import compose, initialize_config_module
        from hydra.utils import instantiate

        given = {override.split("=")[0] for override in overrides}
        defaults = [o for o in ("model=gpt2", "size=nano") if o.split("=")[0] not in given]
        groups = [f"+{o}" if o.split("=")[0] in ("model", "size") else o for o in overrides]
        with initialize_config_module(config_module="llm.conf", version_base="1.3"):
            config = compose(overrides=[*(f"+{o}" for o in defaults), *groups])
        return instantiate(config.model, vocab_size=vocab_size)

    return build
