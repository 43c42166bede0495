import pickle
from pathlib import Path

import numpy as np
import pytest

from llm.data.token_file import TokenFile, token_dtype


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
