"""Headers of GGUF files, compared with the library's own reader; damaged and hostile ones."""

import os
import struct

import gguf
import numpy as np
import pytest
import torch

from llm.config.errors import ConfigError
from llm.weights.gguf_file import read_gguf

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def write(path, *, kinds=KINDS, **values):
    """Write a file with one tensor of each type."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.epsilon", 1e-5)
    writer.add_array("names", ["a", "größe", ""])
    writer.add_array("flags", [True, False])
    for key, value in values.items():
        writer.add_uint32(key.replace("__", "."), value)
    random = np.random.default_rng(0)
    for name in kinds:
        kind = gguf.GGMLQuantizationType[name]
        data = gguf.quantize(random.normal(size=(3, 5, 64)).astype(np.float32), kind)
        writer.add_tensor(name.lower(), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors_equal_those_of_the_library(tmp_path):
    path = write(tmp_path / "a.gguf")
    found, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert found.values["llama.block_count"] == 2
    assert found.values["llama.epsilon"] == 1e-5
    assert found.values["names"] == ["a", "größe", ""]
    assert found.values["flags"] == [True, False]
    assert found.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        stored = found.tensors[tensor.name]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        assert stored.shape == (3, 5, 64)
        assert torch.equal(stored.lazy().read().float(), expected)
        parts = [part.read().float() for part in stored.unbind()]
        assert torch.equal(torch.stack(parts), expected)


def test_other_alignment_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    for name in "ab":
        writer.add_tensor(name, np.full(3, ord(name), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf(path).tensors["b"].lazy().read().tolist() == [98, 98, 98]


def test_a_file_cut_anywhere_is_one_line(tmp_path):
    data = write(tmp_path / "a.gguf", kinds=["F32", "Q8_0"]).read_bytes()
    header = data.index(b"q8_0") + 60
    for size in [*range(0, header, 7), header, len(data) // 2, len(data) - 40]:  # after the padding
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(ConfigError, match=r"weights.path: .* is not a complete GGUF") as error:
            read_gguf(tmp_path / "cut.gguf")
        assert "\n" not in str(error.value)


def test_a_changed_header_never_raises_anything_else(tmp_path):
    data = write(tmp_path / "a.gguf", kinds=["F32", "Q8_0"]).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for position in random.integers(4, data.index(b"q8_0") + 60, size=3):
            changed[position] = random.integers(256)
        (tmp_path / "b.gguf").write_bytes(changed)
        try:
            read_gguf(tmp_path / "b.gguf")
        except ConfigError:
            refused += 1
    assert 0 < refused < 300


def header(tensors=0, values=b"", *, number=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, number) + values


def key(kind, rest):
    return struct.pack("<Q1sI", 1, b"k", kind) + rest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(2**60), "claims to have 1,152,921,504,606,846,976 tensors"),
        (header(number=2**60), "cut short"),
        (header(version=1), "version is 1"),
        (header(version=1 << 24), "version is 16777216"),
        (header(number=1, values=key(8, struct.pack("<Q", 2**62))), "cut short"),
        (header(number=1, values=key(9, struct.pack("<IQ", 0, 2**62))), "claims to have"),
        (header(number=1, values=key(9, struct.pack("<IQ", 8, 2**20))), "cut short"),
        (header(number=1, values=key(9, struct.pack("<IQ", 9, 1))), "array of the type 9"),
        (header(number=1, values=key(77, b"")), "unknown type 77"),
        (header(number=2, values=2 * key(0, b"a")), "occurs twice"),
        (header(1, struct.pack("<Q1sI", 1, b"t", 2**31)), "2147483648 dimensions"),
        (header(1, struct.pack("<Q1sIQIQ", 1, b"t", 1, 2**62, 0, 0)), "ends beyond"),
        (header(1, struct.pack("<Q1sIQIQ", 1, b"t", 1, 2, 999, 0)), "unknown type 999"),
        (header(1, struct.pack("<Q1sIQIQ", 1, b"t", 1, 33, 8, 0)), "in blocks of 32"),
    ],
)
def test_counts_that_are_too_large_are_refused_before_they_are_used(data, message, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read_gguf(path)


def test_missing_files_pipes_and_parts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_gguf(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        read_gguf(tmp_path / "pipe.gguf")
    with pytest.raises(ConfigError, match="one of 3 files; merge"):
        read_gguf(write(tmp_path / "a.gguf", split__count=3))
