"""A token for each of the 256 bytes of UTF-8 and one for the end of a text."""

from typing import Any

from llm.tokenizers.tokenizer import Tokenizer


class ByteTokenizer(Tokenizer):
    """The id of a byte is its value: 257 ids for every text there is, and nothing to train.

    Source: Xue et al. 2022, "ByT5: Towards a token-free future with pre-trained byte-to-byte models".
    """

    kind = "byte"

    def __init__(self) -> None:
        super().__init__([bytes([byte]) for byte in range(256)])

    def encode_ordinary(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode("utf-8"))

    def state(self) -> dict[str, Any]:
        """Nothing: all byte tokenizers are alike."""
        return {}
