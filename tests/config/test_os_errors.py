"""A full disk and unusable paths are reported in one line, also in the record of the run."""

import json
import resource
import sys
from contextlib import contextmanager

import pytest
from torch.utils.data import DataLoader

from llm import __main__ as command_line
from llm.config.errors import ConfigError
from llm.config.os_errors import StorageError, explain_os_errors
from llm.data.errors import DataError

SMALL = [
    *("data=text", "tokenizer=byte", "size=nano", "hardware=cpu", "hardware.threads=1"),
    *("callbacks.samples=null", "callbacks.picture=null", "trainer.max_steps=2", "name=x"),
]


@contextmanager
def limited(size: int):
    """Limit the size of a file that this process may write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """train(*words): return the exit status and the text on standard error."""
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))

    def train(*words: str) -> tuple[object, str]:
        line = ["llm", "train", *SMALL, "data.path=text.txt", *words]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            command_line.main()
        return end.value.code, capsys.readouterr().err

    return train


def test_checkpoint_on_a_full_disk_fails_with_one_line(train, tmp_path):
    with limited(200_000):  # bytes; the model alone is larger
        status, told = train("output_dir=runs")
    assert status == 1
    assert "the file would be larger than is allowed; raise the limit" in told.splitlines()[-1]
    assert "unexpected pos" not in told
    assert "Traceback" not in told
    error = json.loads((tmp_path / "runs/pretraining/x/run.json").read_text())["error"]
    assert "\n" not in error
    assert "raise the limit" in error


def test_an_output_folder_that_is_a_file_is_named(train, tmp_path):
    (tmp_path / "file").touch()
    status, told = train("output_dir=file")
    assert (status, told.count("\n")) == (2, 1)
    assert "file/pretraining: a component of this path is a file; use a folder" in told


@pytest.mark.parametrize(
    ("lock", "words"),
    [("pretraining/.x.lock", ()), ("sweeps/x/.sweep.json.lock", ("-m", "seed=1,2"))],
)
def test_link_at_the_path_of_a_lock_is_named(lock, words, train, tmp_path):
    (place := tmp_path / "runs" / lock).parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "mine")
    status, told = train("output_dir=runs", *words)
    assert (status, told.count("\n")) == (2, 1), told
    assert f"{lock}: is a symbolic link, which is not followed here; delete it" in told
    assert not (tmp_path / "mine").exists()


def test_other_errors_are_unchanged():
    with pytest.raises(FileNotFoundError), explain_os_errors():
        raise FileNotFoundError(2, "No such file", "x")
    with pytest.raises(KeyError), explain_os_errors():
        raise KeyError("x")


def test_first_cause_is_reported():
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__context__ = OSError(28, "No space left on device")
    with pytest.raises(StorageError, match="the disk is full") as told, explain_os_errors():
        raise hidden
    assert "\n" not in str(told.value)
    with (
        pytest.raises(ConfigError, match=r"a/b: the file system is read-only"),
        explain_os_errors(),
    ):
        raise OSError(30, "Read-only file system", "a/b")


class Unreadable:
    """Rows that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> int:
        raise DataError("train.bin: was cut")


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_a_data_loader_worker_is_one_line(workers):
    with pytest.raises(DataError) as caught, explain_os_errors():
        next(iter(DataLoader(Unreadable(), num_workers=workers)))  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == "train.bin: was cut"
    assert caught.value.problems == ("train.bin: was cut",)
