"""A scanner for stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Passes text on until a stop string is complete.

    The scanner holds back text that could still become a stop string. The stop string that is complete first wins; if
    several are complete at once, the one that begins first wins. The outcome therefore does not depend on how the text
    was cut.

    Attributes:
      stopped: whether the scanner has found a stop string; it releases nothing after that.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stops)
        self._pending = ""
        self._passed = 0  # characters of `_pending` within which no stop string counts as complete
        self.stopped = False

    def push(self, piece: str, *, stops: bool = True) -> str:
        """The text that is safe to release after `piece`; it ends before the stop string.

        Without `stops`, no stop string that is complete within `piece` counts; one that begins there may.
        """
        if self.stopped or not self._stops:
            return "" if self.stopped else piece
        text = self._pending + piece
        if not stops:
            self._passed = len(text)
        found = [(start + len(stop), start) for stop in self._stops if (start := self._place(stop, text)) >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return text[: min(found)[1]]
        border = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._pending, self._passed = text[border:], max(self._passed - border, 0)
        return text[:border]

    def _place(self, stop: str, text: str) -> int:
        return text.find(stop, max(self._passed - len(stop) + 1, 0))

    def flush(self) -> str:
        """The text held back; call this when no more text follows."""
        pending, self._pending = self._pending, ""
        return pending


def _overlap(text: str, stop: str) -> int:
    """Number of characters at the end of `text` that are the beginning of `stop`."""
    for start in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[start:]):
            return len(text) - start
    return 0
