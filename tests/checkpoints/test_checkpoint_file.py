"""Checkpoint files are written completely or not at all, and verified when read."""

import pickle

import pytest
import torch

from llm.checkpoints.checkpoint_file import fall_back, load_checkpoint, save_checkpoint
from llm.checkpoints.checksums import DamagedCheckpointError, write_digests
from llm.files import sha256_of_file


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save_checkpoint({"weight": torch.arange(100.0), "step": 3}, path)
    return path


def test_what_was_saved_is_read(saved):
    loaded = load_checkpoint(saved)
    assert torch.equal(loaded["weight"], torch.arange(100.0))
    assert loaded["step"] == 3


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_flipped_bit_is_detected_at_any_position(saved, place):
    data = bytearray(saved.read_bytes())
    data[int(place * len(data))] ^= 1
    saved.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=r"last\.ckpt is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("record", [None, "{}", '{"last.ckpt": []}', "[", '{"last.ckpt": "0"}'])
def test_file_without_a_recorded_digest_counts_as_damaged(saved, record):
    file = saved.with_name("sha256.json")
    file.unlink() if record is None else file.write_text(record)
    with pytest.raises(DamagedCheckpointError, match=r"damaged: sha256\.json has no SHA-256 of it"):
        load_checkpoint(saved)


@pytest.mark.parametrize("has_links", [True, False])
def test_previous_checkpoint_is_kept_and_replaces_a_damaged_one(saved, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr("pathlib.Path.hardlink_to", _refuse)
    for step in (4, 5):
        save_checkpoint({"step": step}, saved, keeps_previous=True)
    previous = saved.with_name("previous.ckpt")
    assert (load_checkpoint(saved)["step"], load_checkpoint(previous)["step"]) == (5, 4)
    saved.write_bytes(b"damaged")
    assert fall_back(saved)
    assert load_checkpoint(saved)["step"] == 4
    assert {file.name for file in saved.parent.iterdir()} == {"last.ckpt", "sha256.json"}
    assert not fall_back(saved)
    assert load_checkpoint(saved)["step"] == 4


def _refuse(*_) -> None:
    raise OSError("no hard links here")


def test_failed_write_keeps_the_old_file_and_leaves_no_partial_file(saved, monkeypatch):
    def fail(checkpoint, file):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"step": 4}, saved)
    assert load_checkpoint(saved)["step"] == 3
    assert {file.name for file in saved.parent.iterdir()} == {"last.ckpt", "sha256.json"}


def test_crash_between_file_and_digest_leaves_a_readable_checkpoint(saved, monkeypatch):
    """While a file is replaced, the record contains the old and the new digest."""
    from llm.checkpoints import checksums

    calls = []
    write = checksums.write_json

    def crash_at_second(path, known, **layout):
        calls.append(known)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, known, **layout)

    monkeypatch.setattr(checksums, "write_json", crash_at_second)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"step": 4}, saved)
    assert load_checkpoint(saved)["step"] == 4


def test_loading_an_untrusted_checkpoint_executes_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "stranger.ckpt"
    torch.save({"state_dict": Harmful()}, path)
    write_digests(path, [sha256_of_file(path)])
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt: there is no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere.ckpt")
