"""Reuse of a cache for the next text, such as the next prompt of a chat."""

from collections.abc import Sequence

from llm.nn.kv_cache import Cache


class PrefixCache:
    """The cache of the last text. If the next text begins with the same tokens, only its other tokens are computed."""

    def __init__(self) -> None:
        self._text: Sequence[int] = ()
        self._cache: Cache | None = None

    def keep(self, text: Sequence[int], cache: Cache | None) -> None:
        """Store the cache of a text in place of the last one.

        Args:
            text: its tokens, from the first on. The list may grow later.
            cache: its keys and values; None drops the last cache without a new one.
        """
        self._text, self._cache = text, cache

    def recall(self, text: Sequence[int], capacity: int) -> Cache | None:
        """Return the cache of the common prefix of the stored text and this one, and drop the stored cache.

        Args:
            text: the tokens to be computed.
            capacity: number of columns that the cache can hold.

        Returns:
            The cache, or None if the texts begin differently.
        """
        cache, known = self._cache, self._text
        self.keep((), None)
        if cache is None:
            return None
        # At least one token is left to compute, for its logits. An interrupted forward pass may have filled only
        # some layers, so the shortest one counts.
        most = min(len(text) - 1, *(layer.length for layer in cache.layers))
        length = next((at for at in range(most) if text[at] != known[at]), most)
        return cache.truncated(length, capacity) if length else None
