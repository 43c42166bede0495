from pathlib import Path

import pytest

from llm.data import cache_folder as cache
from llm.data.errors import DataError


def test_environment_variable_sets_the_folder(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache.cache_folder() == cache_folder
    assert cache.writable_folder("tokens") == cache_folder / "tokens"
    assert list((cache_folder / "tokens").iterdir()) == []
    monkeypatch.delenv("LLM_CACHE")
    assert cache.cache_folder().name == "llm"
    assert "~" not in str(cache.cache_folder())


def test_unwritable_folder_is_replaced_by_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv(
        "LLM_CACHE", str(tmp_path / "file")
    )  # a file, in which even root can create nothing
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "user" / project)
    assert cache.writable_folder("tokens") == tmp_path / "user" / "llm" / "tokens"


def test_no_writable_folder_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "file" / project)
    with pytest.raises(DataError, match=r"LLM_CACHE: .*file.* is not writable; set it"):
        cache.writable_folder("tokens")
