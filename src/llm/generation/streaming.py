"""Incremental decoding of tokens to text, in whole characters."""

from collections.abc import Sequence

from llm.tokenizers.base import Tokenizer, ends_within_character


class IncrementalDecoder:
    """Decoder of the tokens of one row, one by one, to pieces of its text.

    Text is held back while a later token can change it: an unfinished character, and for a tokenizer of
    words the text after an opening quote. Special tokens have no text.

    Args:
        tokenizer: the tokenizer of the tokens.
        prompt: the tokens before. Their text is not repeated, but decides whether a tokenizer of words begins
            with a space.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._special = set(tokenizer.special_tokens.values())
        self._tokens = [token for token in prompt if token not in self._special]
        # The prompt may end inside a character, which takes up to four bytes in UTF-8.
        last = b"".join(map(tokenizer.token_bytes, self._tokens[-4:]))
        decode = tokenizer.decode_settled if ends_within_character(last) else tokenizer.decode
        self._shown = len(decode(self._tokens))

    def add(self, token: int) -> str:
        """Take the next token; return the newly settled text."""
        if token in self._special:
            return ""
        self._tokens.append(token)
        piece = self.tokenizer.decode_settled(self._tokens)[self._shown :]
        self._shown += len(piece)
        # Decoding all tokens at each step would take quadratic time; the last few determine the next piece.
        if piece and self.tokenizer.context is not None:
            self._tokens = self._tokens[-self.tokenizer.context :]
            self._shown = len(self.tokenizer.decode_settled(self._tokens))
        return piece

    def close(self) -> str:
        """Return the text held back, after the last token."""
        return self.tokenizer.decode(self._tokens)[self._shown :]
