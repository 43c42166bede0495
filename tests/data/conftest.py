"""A cache folder for each test, and small corpora."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm.data.corpora.base import Source


class Texts(Source):
    """A source of given documents."""

    def __init__(self, *texts: str, name: str = "texts"):
        self.texts, self.name = texts, name

    def documents(self) -> Iterator[str]:
        yield from self.texts

    def fingerprint(self) -> str:
        return repr(self.texts)


@pytest.fixture
def texts() -> Callable[..., Source]:
    return Texts


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate cache folder for each test."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "cache"
