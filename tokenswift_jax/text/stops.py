"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Passes text on until a stop string is complete.

    Text that could still become a stop string is held back. The stop string that is complete first wins, of those
    the one that begins first; so the outcome does not depend on how the text was cut into pieces.

    Attributes:
      stopped: whether a stop string has been found; nothing comes out after it.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is safe to give out after `piece`; it ends before the stop string."""
        if self.stopped or not self._stops:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        border = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[border:]
        return text[:border]

    def flush(self) -> str:
        """The text held back, once no more follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    for start in range(max(0, len(text) - len(stop) + 1), len(text)):
        if stop.startswith(text[start:]):
            return len(text) - start
    return 0
