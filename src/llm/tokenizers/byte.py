"""A token for each of the 256 bytes of UTF-8 and one for the end of a text."""

from typing import Any

from llm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer


class ByteTokenizer(Tokenizer):
    """The id of a byte is its value: 257 ids for every text there is, and nothing to train.

    Source: Xue et al. 2022, "ByT5: Towards a token-free future with pre-trained byte-to-byte models".
    """

    kind = "byte"

    @property
    def vocab_size(self) -> int:
        """256 bytes and the end of a text."""
        return 257

    @property
    def special_tokens(self) -> dict[str, int]:
        """The end of a text, after the bytes."""
        return {END_OF_TEXT: 256}

    def encode_ordinary(self, text: str) -> list[int]:
        """The UTF-8 bytes of a text."""
        return list(text.encode("utf-8"))

    def token_bytes(self, token: int) -> bytes:
        """The byte itself, or the name of the end of a text."""
        self.check_token(token)
        return bytes([token]) if token < 256 else END_OF_TEXT.encode()

    def state(self) -> dict[str, Any]:
        """Nothing: all byte tokenizers are alike."""
        return {}
