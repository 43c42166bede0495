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

    Args:
        tokenizer: what the tokens are of.
        prompt: tokens before the first; their text is not repeated, but a tokenizer of words needs
            them to know that a space comes next.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        self.tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT:])
        self._shown = len(self._certain())

    def add(self, token: int) -> str:
        """Take the next token; return the characters that are complete and were not shown yet."""
        self._tokens.append(token)
        piece = self._certain()[self._shown :]
        self._tokens = self._tokens[-CONTEXT:]
        self._shown = len(self._certain())
        return piece

    def close(self) -> str:
        """No token follows: return what stands for a character that was never completed."""
        return self._text()[self._shown :]

    def _text(self) -> str:
        return self.tokenizer.decode(self._tokens) if self._tokens else ""

    def _certain(self) -> str:
        """The text but for a last mark of replacement, which one more token may turn into a letter.

        Those before it are final: only bytes at the end can still be completed.
        """
        return self._text().removesuffix(REPLACEMENT)
