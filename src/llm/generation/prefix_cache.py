"""The cache of one text, reused for the next text that begins the same, such as the next prompt of a chat."""

from collections.abc import Sequence

from llm.nn.kv_cache import Cache


class PrefixCache:
    """The cache of the last text: of a prompt that repeats it only the new tokens have to be computed."""

    def __init__(self) -> None:
        self._text: Sequence[int] = ()
        self._cache: Cache | None = None

    def keep(self, text: Sequence[int], cache: Cache | None) -> None:
        """Remember the cache of a text in place of the one before.

        Args:
            text: its tokens, from the first on. The list may grow later.
            cache: its keys and values; None forgets.
        """
        self._text, self._cache = text, cache

    def recall(self, text: Sequence[int], capacity: int) -> Cache | None:
        """Return the cache of the common beginning of the remembered text and this one, and forget it.

        Args:
            text: the tokens that are about to be computed.
            capacity: number of columns that the cache can hold.

        Returns:
            The cache, or None if the texts begin differently.
        """
        cache, known = self._cache, self._text
        self.keep((), None)
        if cache is None:
            return None
        # At least one token is left to compute, for its logits. An interrupted forward pass may have reached
        # only some of the layers, so the shortest one counts.
        most = min(len(text) - 1, *(layer.length for layer in cache.layers))
        length = next((at for at in range(most) if text[at] != known[at]), most)
        return cache.truncate(length, capacity) if length else None
