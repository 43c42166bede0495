"""From tokens to text while they arrive, without ever showing half a character."""

from collections.abc import Sequence

from llm.tokenizers.tokenizer import Tokenizer

# What stands for bytes that are no character: wrong ones, or the first of one that is not complete.
REPLACEMENT = "\ufffd"
# A character has at most four bytes and a token at least one, so what an unfinished character needs
# of the past lies within this many tokens.
CONTEXT = 4


class IncrementalDecoder:
    """Decodes a row of tokens one by one; the pieces joined are the text of the whole row.

    A tokenizer of words may set the past anew when a word comes: the space after an opening quote
    is known to be wrong only at the closing one. What was shown stays, and the word follows it.

    Args:
        tokenizer: what the tokens are of.
        prompt: tokens before the first; their text is not repeated, but a tokenizer of words needs
            them to know that a space comes next.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        special = set(tokenizer.special_tokens.values())
        self._tokens = [token for token in prompt[-CONTEXT:] if token not in special]
        self._shown = self._certain()

    def add(self, token: int) -> str:
        """Take the next token; return the characters that are complete and were not shown yet."""
        self._tokens.append(token)
        certain = self._certain()
        respelled = not certain.startswith(self._shown)
        piece = " " + self.tokenizer.decode([token]) if respelled else certain[len(self._shown) :]
        self._tokens = self._tokens[-CONTEXT:]
        self._shown = self._certain()
        return piece

    def close(self) -> str:
        """No token follows: return what stands for a character that was never completed."""
        return self.tokenizer.decode(self._tokens)[len(self._shown) :]

    def _certain(self) -> str:
        """The text but for a last mark of replacement, which one more token may turn into a letter.

        Those before it are final: only bytes at the end can still be completed.
        """
        return self.tokenizer.decode(self._tokens).removesuffix(REPLACEMENT)
