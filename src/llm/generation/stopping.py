"""Stop strings: the text at which a row is told to end, wherever it falls among the tokens."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on as it arrives, until a stop string appears in it, which it swallows.

    Text that may yet turn out to be the start of a stop string is held back, so nothing is shown
    that would have to be taken back.

    Args:
        stops: the strings; the first to be completed ends the text.

    Raises:
        ValueError: an empty stop string, which stands in every text.
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
        # The first to end, and of those the longest: the same however the text is cut in pieces.
        found = min(((at + len(stop), at) for at, stop in starts if at >= 0), default=None)
        if found is not None:
            self.stopped = True
            return self._release(found[1])
        return self._release(len(self._held) - longest_start(self._held, self.stops))

    def close(self) -> str:
        """The text is at its end: return what was held back, for no stop string came of it."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        released, self._held = self._held[:length], self._held[length:]
        return released


def longest_start(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` could be the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(len(stop) > length and stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
