"""Lazy tensors: shapes without reading values, one tensor at a time, damage reported."""

import pytest
import torch
from safetensors.torch import save_file

from llm.checkpoints.lazy_tensor import in_safetensors, in_torch_file
from llm.config.errors import ConfigError

STATE = {
    "a": torch.arange(12.0).reshape(3, 4),
    "half": torch.randn(5, 2).bfloat16(),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


def safetensors(path, state):
    save_file(state, path)
    return in_safetensors(path)


def torch_file(path, state):
    torch.save({"state_dict": state, "step": 3}, path)
    return in_torch_file(path, "state_dict")


@pytest.mark.parametrize("write", [safetensors, torch_file])
def test_what_was_written_is_read(write, tmp_path):
    found = write(tmp_path / "weights", STATE)
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].shape == tensor.shape
        read = found[name].read()
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_views_and_shared_tensors_of_a_torch_file_are_read(tmp_path):
    whole = torch.randn(6, 4)
    state = {"whole": whole, "turned": whole.t(), "part": whole[2:4, 1:], "again": whole}
    found = torch_file(tmp_path / "weights", state)
    for name, tensor in state.items():
        assert torch.equal(found[name].read(), tensor)


@pytest.mark.parametrize("write", [safetensors, torch_file])
def test_changing_a_read_tensor_does_not_change_the_file(write, tmp_path):
    found = write(tmp_path / "weights", STATE)
    before = (tmp_path / "weights").read_bytes()
    found["a"].read().zero_()
    assert (tmp_path / "weights").read_bytes() == before
    assert torch.equal(found["a"].read(), STATE["a"])


@pytest.mark.parametrize("read", [in_safetensors, in_torch_file])
@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 200])
def test_a_damaged_file_is_named(read, content, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights: cannot be read") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [safetensors, torch_file])
def test_truncated_file_is_named(write, tmp_path):
    path = tmp_path / "weights"
    write(path, STATE)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"weights: cannot be read"):
        in_safetensors(path) if write is safetensors else in_torch_file(path, "state_dict")


def test_a_torch_file_that_would_execute_something_is_refused(tmp_path):
    torch.save({"state_dict": {"a": print}}, tmp_path / "weights")
    with pytest.raises(ConfigError, match=r"cannot be read"):
        in_torch_file(tmp_path / "weights", "state_dict")


def test_the_format_before_torch_1_6_is_named(tmp_path):
    path = tmp_path / "weights"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match=r"torch 1.6"):
        in_torch_file(path)
