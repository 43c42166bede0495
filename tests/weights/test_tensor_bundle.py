"""A checkpoint that TensorFlow wrote is read without it, and a damaged one is noticed.

The checkpoint in openai/ is made by openai/make.py.
"""

import contextlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm.config.errors import ConfigError
from llm.weights import tensor_bundle
from llm.weights.tensor_bundle import crc32c, in_tensor_bundle

HERE = Path(__file__).parent / "openai"
DATA = "model.ckpt.data-00000-of-00001"


@pytest.fixture
def prefix(tmp_path):
    shutil.copytree(HERE / "original", tmp_path, dirs_exist_ok=True)
    return tmp_path / "model.ckpt"


def test_checksum_equals_that_of_rfc_3720():
    # RFC 3720, appendix B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_names_and_shapes_are_those_of_the_release(prefix):
    found = in_tensor_bundle(prefix)
    assert len(found) == 4 + 2 * 12
    assert found["model/wte"].shape == (265, 16)
    assert found["model/h1/attn/c_attn/w"].shape == (1, 16, 48)
    assert found["model/ln_f/g"].shape == (16,)


def test_numbers_are_those_that_tensorflow_reads(prefix):
    found = in_tensor_bundle(prefix)
    expected = load_file(HERE / "converted" / "model.safetensors")
    assert torch.equal(found["model/wpe"].read(), expected["transformer.wpe.weight"])
    matrix = found["model/h1/mlp/c_proj/w"].read()
    assert torch.equal(matrix[0], expected["transformer.h.1.mlp.c_proj.weight"])


def test_every_flipped_bit_of_the_index_is_noticed(prefix):
    """Except in the padding of the footer and the empty block before it, which contain no data."""
    index = Path(f"{prefix}.index")
    whole = index.read_bytes()
    before = {name: stored.shape for name, stored in in_tensor_bundle(prefix).items()}
    unnoticed = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        index.write_bytes(data)
        with contextlib.suppress(ConfigError):
            found = in_tensor_bundle(prefix)
            assert {name: stored.shape for name, stored in found.items()} == before
            unnoticed += 1
    assert unnoticed < 60


@pytest.mark.parametrize("length", [0, 10, 47, 48, 200, 900])
def test_an_index_that_was_cut_short_is_named(prefix, length):
    index = Path(f"{prefix}.index")
    index.write_bytes(index.read_bytes()[:length])
    with pytest.raises(
        ConfigError, match=r"model.ckpt.index is not a complete TensorFlow checkpoint"
    ):
        in_tensor_bundle(prefix)


@pytest.mark.parametrize(
    "entry",
    [
        b"\x0a\x00",  # the type as bytes
        b"\x08\x01\x10\x05",  # the shape as a number
        b"\x08\x01\x1a\x00",  # the shard as bytes
    ],
)
def test_a_field_of_another_kind_is_named(prefix, entry, monkeypatch):
    monkeypatch.setattr(tensor_bundle, "_table", lambda data: [(b"", b""), (b"model/wte", entry)])
    with pytest.raises(
        ConfigError, match=r"model.ckpt.index is not a complete TensorFlow checkpoint"
    ):
        in_tensor_bundle(prefix)


def test_missing_and_short_data_are_named(prefix):
    data = prefix.with_name(DATA)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=rf"ends beyond {DATA}"):
        in_tensor_bundle(prefix)
    data.unlink()
    with pytest.raises(ConfigError, match=rf"{DATA} is missing"):
        in_tensor_bundle(prefix)
    Path(f"{prefix}.index").unlink()
    with pytest.raises(ConfigError, match=r"model.ckpt.index is missing"):
        in_tensor_bundle(prefix)
