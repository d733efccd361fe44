"""A stopwatch that can be halted."""

from __future__ import annotations

import time


class Stopwatch:
    """Counts seconds while it runs; it stands at 0 until it is started.

    Attributes:
      started: whether it has ever run.
    """

    def __init__(self) -> None:
        self.started = False
        self._counted = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Lets it run, or run on."""
        self.started = True
        if self._since is None:
            self._since = time.perf_counter()

    def halt(self) -> None:
        """Stops it; `start` lets it run on."""
        self._counted, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """The seconds in which it ran."""
        return self._counted + (0.0 if self._since is None else time.perf_counter() - self._since)
