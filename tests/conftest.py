"""Fixtures that every slice of the tests shares."""

import os
from pathlib import Path

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
