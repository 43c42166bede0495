"""A token for each of the 256 bytes of UTF-8 and one for the end of a text."""

from collections.abc import Sequence
from typing import Any

from llm.tokenizers.base import END_OF_TEXT, Tokenizer

DATA_VERSION = 1  # raised when the tokens or the text that come out of here change


class ByteTokenizer(Tokenizer):
    """The id of a byte is its value: 257 ids for every text there is, and nothing to train.

    Source: Xue et al. 2022, "ByT5: Towards a token-free future with pre-trained byte-to-byte models".

    Args:
        special_tokens: The names of the special tokens.
    """

    kind = "byte"

    def __init__(self, special_tokens: Sequence[str] = (END_OF_TEXT,)) -> None:
        super().__init__([bytes([byte]) for byte in range(256)], special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode("utf-8"))

    def state(self) -> dict[str, Any]:
        """The names of the special tokens: in all else byte tokenizers are alike."""
        return {"special_tokens": list(self.special_tokens)}
