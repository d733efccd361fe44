"""The tokens a second of a server, for estimates of waits."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from tokenswift_jax.serve.run import Run

_WEIGHT = 0.1  # of the newest chunk in the running average


class Pace:
    """A running average of the tokens a second of all texts together.

    Attributes:
      tokens_per_second: the average; None before the first chunk.
    """

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        self._last: float | None = None

    def idle(self) -> None:
        """Notes that nothing runs: the time until the next chunk does not count."""
        self._last = None

    def took(self, tokens: int) -> float:
        """Takes the tokens that a chunk has given; returns the seconds since the chunk before it, 0 after a pause."""
        now = time.perf_counter()
        seconds, self._last = 0.0 if self._last is None else now - self._last, now
        if tokens and seconds > 0:
            rate = tokens / seconds
            before = self.tokens_per_second
            self.tokens_per_second = rate if before is None else before + _WEIGHT * (rate - before)
        return seconds

    def seconds(self, tokens: int, slots: int) -> float | None:
        """Seconds until so many tokens are written and one of the slots is free; None where the pace is unknown."""
        if not self.tokens_per_second:
            return None
        return tokens / self.tokens_per_second / max(slots, 1)

    def until(self, run: Run, waiting: Iterable[Run], placed: Iterable[Run], slots: int) -> float | None:
        """An estimate of the seconds until one of the `waiting` runs, in their order, begins behind the `placed` ones;
        None where nothing is known."""
        ahead = 0
        for other in waiting:
            if other is run:
                return self.seconds(ahead + sum(each.tokens_left for each in placed), slots)
            ahead += other.length - len(other.tokens)
        return None

    def retry_after(self, placed: Collection[Run], slots: int) -> int:
        """Seconds until a place in the queue is likely to be free."""
        fewest = min((run.tokens_left for run in placed), default=0)
        seconds = self.seconds(fewest * max(len(placed), 1), slots)
        return 5 if seconds is None else min(max(int(seconds) + 1, 1), 120)
