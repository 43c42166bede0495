"""A cache folder for each test, and corpora made up on the spot."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm.data.corpora.base import Source


class Texts(Source):
    """Documents given as they are."""

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
    """No test touches the cache of the person who runs it."""
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "cache"
