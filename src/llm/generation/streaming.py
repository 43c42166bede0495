"""From tokens to text while they arrive, without ever showing half a character."""

from collections.abc import Sequence

from llm.tokenizers.base import Tokenizer, ends_within_character


class IncrementalDecoder:
    """Decodes a row of tokens one by one; the pieces joined are the text of the whole row.

    Text is held back while a later token can change it, so that nothing shown is ever wrong: the bytes of
    an unfinished character, and with a tokenizer of words what follows an opening quote. Special tokens
    stand for no text.

    Args:
        tokenizer: what the tokens are of.
        prompt: tokens before the first; their text is not repeated, but a tokenizer of words needs
            them to know that a space comes next.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._special = set(tokenizer.special_tokens.values())
        self._tokens = [token for token in prompt if token not in self._special]
        last = b"".join(map(tokenizer.token_bytes, self._tokens[-4:]))
        decode = tokenizer.decode_settled if ends_within_character(last) else tokenizer.decode
        self._shown = len(decode(self._tokens))

    def add(self, token: int) -> str:
        """Take the next token; return the text that is settled and was not shown yet."""
        if token in self._special:
            return ""
        self._tokens.append(token)
        piece = self.tokenizer.decode_settled(self._tokens)[self._shown :]
        self._shown += len(piece)
        if piece and self.tokenizer.context is not None:
            self._tokens = self._tokens[-self.tokenizer.context :]
            self._shown = len(self.tokenizer.decode_settled(self._tokens))
        return piece

    def close(self) -> str:
        """No token follows: return what was held back."""
        return self.tokenizer.decode(self._tokens)[self._shown :]
