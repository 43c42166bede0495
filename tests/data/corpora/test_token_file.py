import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from llm.data.corpora.token_file import TokenFile, token_dtype
from llm.data.corpora.windows import TrainingWindows
from llm.data.errors import DataError


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(2, "uint16"), (65_536, "uint16"), (65_537, "uint32")]
)
def test_the_smallest_type_that_holds_every_id(vocab_size: int, dtype: str):
    assert token_dtype(vocab_size) == dtype
    largest = np.array([vocab_size - 1], dtype=token_dtype(vocab_size))
    assert largest[0] == vocab_size - 1


def test_it_travels_to_another_process_as_its_path(tmp_path: Path):
    tokens = np.arange(100_000, dtype=np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    file = TokenFile(tmp_path / "train.bin", tokens.dtype)
    travelled = pickle.dumps(file)
    assert len(travelled) < 1000
    assert np.array_equal(pickle.loads(travelled).tokens, tokens)
    assert len(file) == 100_000


def test_a_file_cut_while_it_is_mapped_is_one_line(tmp_path: Path):
    """Reading beyond the end of a mapped file would kill the process without a message."""
    np.arange(100_000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    windows = TrainingWindows(TokenFile(tmp_path / "train.bin", np.dtype(np.uint16)), 8, stride=8)
    assert windows[np.array([12_000])]["tokens"][0, 0] == 30_464
    os.truncate(tmp_path / "train.bin", 4096)
    with pytest.raises(DataError, match=r"train.bin: was truncated while it was read; run the"):
        windows[np.array([12_000])]


def test_a_file_that_is_removed_is_read_on(tmp_path: Path):
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "train.bin")
    file = TokenFile(tmp_path / "train.bin", np.dtype(np.uint16))
    (tmp_path / "train.bin").unlink()
    assert file.tokens.tolist() == list(range(10))
