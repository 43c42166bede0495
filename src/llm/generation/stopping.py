"""Stop strings: texts at which a row ends, however they are split into tokens."""

from collections.abc import Sequence


class StopStrings:
    """A filter that passes text on until a stop string, which is removed.

    Text that may begin a stop string is held back until more text follows.

    Args:
        stops: the strings; the first to be completed ends the text.

    Raises:
        ValueError: a stop string is empty: every text contains it.
    """

    def __init__(self, stops: Sequence[str]):
        if isinstance(stops, str) or not all(stops):
            raise ValueError(f"stop={stops!r}: give a list of strings that are not empty")
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def add(self, text: str) -> str:
        """Take the next piece of the text; return what is certain to belong to the result."""
        if self.stopped:
            return ""
        self._held += text
        starts = [(self._held.find(stop), stop) for stop in self.stops]
        # The stop string that ends first, and the longest of those that end there. So the result does not depend
        # on how the text is divided into pieces.
        found = min(((at + len(stop), at) for at, stop in starts if at >= 0), default=None)
        if found is not None:
            self.stopped = True
            return self._release(found[1])
        return self._release(len(self._held) - longest_start(self._held, self.stops))

    def close(self) -> str:
        """Return the text held back; it ended without a stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        return released


def longest_start(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of `text` could begin a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    # The longest candidate first: it contains the shorter ones.
    for length in range(min(longest, len(text)), 0, -1):
        if any(len(stop) > length and stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
