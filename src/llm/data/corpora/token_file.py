"""Tokens on disk: a flat array of little integers, read through a memory map."""

from pathlib import Path

import numpy as np

from llm.data.errors import DataError


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id: two bytes up to 65,536 ids, four beyond."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenFile:
    """A read-only file of tokens.

    It travels to worker processes as its path: pickling a memory map would copy the corpus.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        # A plain array over the map: indexing the memmap class itself costs microseconds a call.
        self._tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r"))

    @property
    def tokens(self) -> np.ndarray:
        """(N) array over the file; nothing is read until it is indexed.

        Raises:
            DataError: The file was cut since it was opened: reading beyond its end would end the process with a
                bus error.
        """
        try:
            is_cut = self.path.stat().st_size < self._tokens.nbytes
        except FileNotFoundError:  # what was removed stays mapped as a whole
            is_cut = False
        if is_cut:
            raise DataError(
                f"{self.path}: was cut while it was read; run the same command again: the file is made anew"
            )
        return self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path, np.dtype]]:
        return TokenFile, (self.path, self.dtype)
