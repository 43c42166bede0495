"""What a model has computed of one text, for the next text that begins alike: a conversation's next prompt."""

from collections.abc import Sequence

from llm.nn.kv_cache import Cache


class PrefixCache:
    """The cache of the text that was written last.

    A conversation's prompt repeats all that was said before. Its keys and values are known already, so only
    what is new has to be computed.
    """

    def __init__(self) -> None:
        self._text: Sequence[int] = ()
        self._cache: Cache | None = None

    def keep(self, text: Sequence[int], cache: Cache | None) -> None:
        """Remember the cache of a text, in place of the one before.

        Args:
            text: its tokens, from the first on. It may grow: a cache knows how much of it it holds.
            cache: what was computed of it; None forgets.
        """
        self._text, self._cache = text, cache

    def recall(self, text: Sequence[int], capacity: int) -> Cache | None:
        """Give out the cache of what the remembered text and this one begin with, for the last time.

        At least one token of the text is left to compute, as logits come from it.

        Args:
            text: the tokens that are about to be read.
            capacity: columns to have room for.

        Returns:
            The cache, or None if the texts begin differently.
        """
        cache, known = self._cache, self._text
        self.keep((), None)
        if cache is None:
            return None
        # A computation that was interrupted has reached some layers only.
        most = min(len(text) - 1, *(layer.length for layer in cache.layers))
        length = next((at for at in range(most) if text[at] != known[at]), most)
        return cache.beginning(length, capacity) if length else None
