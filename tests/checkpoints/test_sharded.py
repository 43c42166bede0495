"""Sharded checkpoints are read whole or by slices, by any number of ranks, and are never partly written."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from divided import train, write_text
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from llm import distributed
from llm.checkpoints import checksums, sharded
from llm.checkpoints.checkpoint_file import (
    digest_of,
    fall_back,
    load_checkpoint,
    open_checkpoint,
    open_checkpoint_weights,
    open_verified,
    save_checkpoint,
)
from llm.checkpoints.checksums import DamagedCheckpointError
from llm.dtensor import local_slices, to_local
from llm.files import sha256_of_file
from llm.runs import Run, backup_path
from llm.weights.run import RunWeights

MATRIX, BIAS = torch.arange(35.0).view(7, 5), torch.arange(3.0).bfloat16()


def save(path: Path, step: int, fails: bool = False) -> None:
    """Save a checkpoint of matrices that are sharded in several ways, one of them over two of the four ranks."""
    distributed.join_ranks("cpu")
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    rows = distribute_tensor(MATRIX + step, line, [Shard(0)])
    state = {"embedding": rows, "head": rows}
    state["bias"] = distribute_tensor(BIAS, line, [Shard(0)])  # the shard of the last rank is empty
    state["square"] = distribute_tensor(MATRIX - step, square, [Replicate(), Shard(1)])
    state["scalar"] = distribute_tensor(torch.tensor(2.5), line, [Replicate()])
    plain = {"step": step, "states": [torch.arange(3), {"name": "x"}]}
    if fails and distributed.is_first():
        sharded.replace = _fail
    sharded.save_sharded(
        {"state_dict": state, "optimizer": [{0: {"average": rows}}], **plain}, path
    )


def _fail(*_, **__) -> None:
    raise OSError("disk full")


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("once") / "last.ckpt"
    on_ranks(4, save, path, 1)
    return path


@pytest.fixture
def saved(once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(once, tmp_path / "last.ckpt")


def read(path: Path) -> list[list[float]]:
    """Return this rank's shard of the matrix, from a checkpoint of another number of ranks."""
    distributed.join_ranks("cpu")
    like = distribute_tensor(MATRIX, init_device_mesh("cpu", (3,)), [Shard(0)])
    found = open_checkpoint(path)["state_dict"]["embedding"][local_slices(like)]
    assert torch.equal(found, to_local(like) + 1)
    return found.tolist()


def test_checkpoint_is_read_whole_and_by_another_number_of_ranks(saved):
    found = load_checkpoint(saved)
    state = found["state_dict"]
    assert torch.equal(state["embedding"], MATRIX + 1)
    assert state["head"] is state["embedding"]
    assert torch.equal(state["square"], MATRIX - 1)
    assert torch.equal(state["bias"], BIAS)
    assert state["scalar"] == 2.5
    assert torch.equal(found["optimizer"][0][0]["average"], MATRIX + 1)
    assert found["step"] == 1
    assert torch.equal(found["states"][0], torch.arange(3))
    assert {name: s.shape for name, s in open_checkpoint_weights(saved).weights.items()}[
        "bias"
    ] == (3,)
    assert [row for part in on_ranks(3, read, saved) for row in part] == (MATRIX + 1).tolist()


def test_a_slice_reads_the_files_that_hold_it_and_no_others(saved):
    for file in saved.glob("*.safetensors"):
        if "00000-of" not in file.name:
            file.unlink()
    matrix = open_checkpoint(saved)["state_dict"]["embedding"]
    assert torch.equal(matrix[0:2, 1:3], MATRIX[0:2, 1:3] + 1)
    with pytest.raises(DamagedCheckpointError):
        matrix[0:3, 0:5]


def test_next_save_replaces_all_files(saved):
    before = digest_of(saved)
    on_ranks(2, _again, saved)
    assert load_checkpoint(saved)["state_dict"]["x"].tolist() == [2.0] * 4
    assert digest_of(saved) != before
    index = json.loads((saved / "index.json").read_text())
    assert {f.name for f in saved.iterdir()} == {*index["files"], "index.json", "sha256.json"}


def _again(path: Path, keeps_previous: bool = False) -> None:
    distributed.join_ranks("cpu")
    mesh = init_device_mesh("cpu", (2,))
    x = distribute_tensor(torch.full((4,), 2.0), mesh, [Shard(0)])
    sharded.save_sharded({"state_dict": {"x": x}}, path, keeps_previous=keeps_previous)


def test_previous_save_is_kept_and_replaces_a_damaged_one(saved):
    on_ranks(2, _again, saved, True)
    (saved / "2-00001-of-00002.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedCheckpointError):
        open_verified(saved)
    before = open_checkpoint_weights(saved / "previous.json")
    assert torch.equal(before.weights["embedding"].read(), MATRIX + 1)
    assert fall_back(saved)
    assert open_verified(saved)["step"] == 1
    assert torch.equal(load_checkpoint(saved)["state_dict"]["embedding"], MATRIX + 1)
    assert not fall_back(saved)
    on_ranks(2, _again, saved)
    index = json.loads((saved / "index.json").read_text())
    assert {f.name for f in saved.iterdir()} == {*index["files"], "index.json", "sha256.json"}


def test_failed_save_keeps_the_old_checkpoint(saved):
    with pytest.raises(AssertionError, match="disk full"):
        on_ranks(4, save, saved, 2, True)
    assert load_checkpoint(saved)["step"] == 1
    assert torch.equal(load_checkpoint(saved)["state_dict"]["head"], MATRIX + 1)


@pytest.mark.parametrize("name", ["index.json", "1.pt", "1-00002-of-00004.safetensors"])
def test_flipped_bit_is_detected_in_every_file(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-2] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match=f"{name} is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("is_folder", [True, False])
def test_kill_while_replacing_a_checkpoint_loses_nothing(saved, tmp_path, monkeypatch, is_folder):
    """The replaced checkpoint is in a backup folder, and the next process restores it."""
    path = Run(tmp_path / "run").last
    path.parent.mkdir(parents=True)
    if is_folder:
        shutil.move(saved, path)
    else:
        save_checkpoint({"step": 1}, path)
    if (child := os.fork()) == 0:
        with checksums.replacing_folder(path, is_other_kind=True):
            os._exit(0)
    os.waitpid(child, 0)
    run = Run(tmp_path / "run")
    assert run.last.exists()
    assert load_checkpoint(run.last)["step"] == 1
    with run.claimed():
        assert load_checkpoint(path)["step"] == 1
        assert not backup_path(path).exists()
    save_checkpoint({"step": 2}, path)
    assert load_checkpoint(run.last) == {"step": 2}
    assert {f.name for f in path.parent.iterdir()} == {"last.ckpt", "sha256.json"}


def test_failed_write_restores_the_old_folder(saved):
    with (
        pytest.raises(OSError, match="disk full"),
        checksums.replacing_folder(saved, is_other_kind=True),
    ):
        raise OSError("disk full")
    assert load_checkpoint(saved)["step"] == 1


def test_file_replaces_folder_and_folder_replaces_file(saved):
    save_checkpoint({"step": 9}, saved)
    assert load_checkpoint(saved) == {"step": 9}
    on_ranks(2, _again, saved)
    assert load_checkpoint(saved)["state_dict"]["x"].tolist() == [2.0] * 4
    assert {f.name for f in saved.parent.iterdir()} == {"last.ckpt", "sha256.json"}


def change_index(path: Path, change) -> None:
    """Change the index of a checkpoint, and update the digest of the index."""
    index = json.loads((path / "index.json").read_text())
    change(index)
    (path / "index.json").write_text(json.dumps(index))
    checksums.write_digests(path / "index.json", [sha256_of_file(path / "index.json")])


def name_file_outside(name):
    """Return a change that makes the index name a file outside the folder, with a digest."""
    return lambda index: index.update(rest=name, files={**index["files"], name: "0" * 64})


def change_matrix(index, key, value):
    """Change a value in the index entry of the matrix."""
    index["tensors"][0][key] = value


BAD_INDEXES = {
    "a shard is missing": (
        lambda i: i["tensors"][0]["parts"].pop(),
        "the shards do not contain 5 elements",
    ),
    "shards overlap": (
        lambda i: i["tensors"][0]["parts"][1].update(offsets=[1, 0]),
        "shards overlap",
    ),
    "a shard is beyond": (
        lambda i: i["tensors"][0]["parts"][3].update(offsets=[7, 0]),
        "a shard ends beyond the shape",
    ),
    "negative": (lambda i: change_matrix(i, "shape", [-7, -5]), "are not sizes"),
    "other dimensions": (lambda i: change_matrix(i, "shape", [35]), "are not sizes"),
    "dtype": (lambda i: change_matrix(i, "dtype", "load"), "unknown dtype 'load'"),
    "unknown file": (
        lambda i: i["tensors"][0]["parts"][0].update(file="9.safetensors"),
        "no digest of 9.safetensors",
    ),
    "above": (name_file_outside("../out.pt"), "'../out.pt' is not a name"),
    "parent": (name_file_outside(".."), "'..' is not a name"),
    "absolute": (name_file_outside("/etc/passwd"), "'/etc/passwd' is not a name"),
    "no key": (lambda i: i.pop("files"), "it has no key 'files'"),
    "no list": (lambda i: i.update(tensors=3), "not iterable"),
    "no place": (lambda i: change_matrix(i, "keys", [["optimizer", 7, "x"]]), "out of range"),
    "in a tensor": (
        lambda i: change_matrix(i, "keys", [["states", 0, "x"]]),
        "states.0.x is not a key of the checkpoint",
    ),
    "huge": (
        lambda i: i["tensors"].append(
            i["tensors"][0]
            | {"shape": [10**12, 3]}
            | {"parts": [i["tensors"][0]["parts"][0] | {"shape": [10**12, 3]}]}
        ),
        "has shape [2, 5] there and [1000000000000, 3]",
    ),
}


@pytest.mark.parametrize("what", BAD_INDEXES)
def test_invalid_index_is_refused_in_one_line(saved, what):
    change, message = BAD_INDEXES[what]
    change_index(saved, change)
    with pytest.raises(DamagedCheckpointError, match=re.escape(message)) as found:
        load_checkpoint(saved)
    assert "\n" not in str(found.value)


def test_truncated_index_is_refused(saved):
    index = saved / "index.json"
    index.write_text(index.read_text()[:-200])
    checksums.write_digests(index, [sha256_of_file(index)])
    with pytest.raises(
        DamagedCheckpointError, match=r"index\.json is damaged: Unterminated string"
    ):
        load_checkpoint(saved)


def test_loading_an_untrusted_folder_executes_no_code(saved, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save(Harmful(), saved / "1.pt")
    index = json.loads((saved / "index.json").read_text())
    index["files"]["1.pt"] = sha256_of_file(saved / "1.pt")
    (saved / "index.json").write_text(json.dumps(index))
    checksums.write_digests(saved / "index.json", [sha256_of_file(saved / "index.json")])
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(saved)
    assert not (tmp_path / "executed").exists()


def test_run_with_sharded_checkpoints_has_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path)
    train(tmp_path / "one", (text,))
    words = (text, "hardware=fsdp", "hardware.strategy.sharded_checkpoint=true")
    on_ranks(2, train, tmp_path / "two", words)
    assert (tmp_path / "two" / "checkpoints" / "best.ckpt" / "index.json").is_file()
    expected = RunWeights(str(tmp_path / "one")).model().state_dict()
    found = RunWeights(str(tmp_path / "two"))
    for name, tensor in found.model().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert len(found.fingerprint) == 16
