"""Fixtures for the tests of parallel strategies."""

from pathlib import Path

import pytest
from divided import write_text


@pytest.fixture
def text(tmp_path: Path, monkeypatch) -> str:
    """The override that names a small text file, whose tokens are cached for this test only."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    return write_text(tmp_path)
