"""Tokens on disk: a flat array of small integers, read through a memory map."""

from pathlib import Path

import numpy as np

from llm.data.errors import DataError


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest type for all ids: uint16 for up to 65,536 ids, otherwise uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenFile:
    """A read-only file of tokens.

    It is pickled as its path: pickling the memory map would copy the corpus to each worker process.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        # A plain array over the map: indexing np.memmap itself costs microseconds per call.
        self._tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, (N); the file is read when they are indexed.

        Raises:
            DataError: the file was truncated: reading beyond its end would kill the process with a bus error.
        """
        try:
            is_truncated = self.path.stat().st_size < self._tokens.nbytes
        except FileNotFoundError:  # a deleted file stays mapped
            is_truncated = False
        if is_truncated:
            raise DataError(f"{self.path}: was truncated while it was read; run the command again")
        return self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path, np.dtype]]:
        return TokenFile, (self.path, self.dtype)
