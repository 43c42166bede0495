"""A tokenizer of bytes."""

from collections.abc import Sequence

from llm.tokenizers.base import END_OF_TEXT, Tokenizer

DATA_VERSION = 1  # increase it when the output of this module changes, so that caches are rebuilt


class ByteTokenizer(Tokenizer):
    """A tokenizer whose ids are byte values: 257 ids encode every text, without training.

    Source: Xue et al. 2022, "ByT5: Towards a token-free future with pre-trained byte-to-byte models".

    Args:
        special_tokens: the names of the special tokens.
    """

    kind = "byte"

    def __init__(self, special_tokens: Sequence[str] = (END_OF_TEXT,)) -> None:
        super().__init__([bytes([byte]) for byte in range(256)], special_tokens)

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of a text."""
        return list(text.encode("utf-8"))
