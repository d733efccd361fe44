"""The chunks and insertions that the device has yet to finish, in the order in which their results come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tokenswift_jax.serve.tenancy import Flight, Tenancy

if TYPE_CHECKING:
    from tokenswift_jax.serve.pool import Pool


class Flights:
    """The flights of all pools; the scheduler's thread alone calls it.

    Those of one pool end in order, and those of several pools in any. A thread for each pool waits for its results:
    if the scheduler's thread waited for the oldest one, a request that comes meanwhile, and the short text of another
    pool, would wait with it (cost: two chunks of a long text).
    """

    def __init__(self, wake: threading.Condition) -> None:
        """`wake` is what the scheduler's thread waits for; it is told when a result has come."""
        self._wake = wake
        self._flying: deque[Flight] = deque()
        self._landed: deque[Flight] = deque()
        self._waiting: dict[Pool, ThreadPoolExecutor] = {}
        self._first: dict[Pool, Tenancy] = {}  # the text that a pool lets end before its next chunk

    def __len__(self) -> int:
        return len(self._flying)

    def add(self, flight: Flight) -> None:
        """Takes a flight that a pool has sent."""
        self._flying.append(flight)
        waiting = self._waiting.get(flight.pool)
        if waiting is None:
            waiting = self._waiting[flight.pool] = ThreadPoolExecutor(1, "tokenswift-results")
        waiting.submit(self._wait, flight)

    def next(self, called: Callable[[], bool]) -> Flight | None:
        """Waits for the next result, which flies no more then; None: the scheduler is `called` before one comes."""
        with self._wake:
            while not (self._landed or called()):
                self._wake.wait()
            if not self._landed:
                return None
            flight = self._landed.popleft()
        self._flying.remove(flight)
        return flight

    def drain(self) -> list[Flight]:
        """All flights, the oldest first: their results are still to come, and no others will."""
        flying, self._flying = list(self._flying), deque()
        for waiting in self._waiting.values():
            waiting.shutdown(wait=False)
        return flying

    def of(self, pool: Pool) -> int:
        """The number of a pool's flights."""
        return sum(flight.pool is pool for flight in self._flying)

    def gives_way(self, pool: Pool) -> bool:
        """Whether a pool lets a text of another come to its end first, because that is near.

        On a CPU both would share the cores, and the short text would take twice as long. The pool waits for one text
        before each of its own chunks, so that many short ones do not keep it from the device.
        """
        first = self._first.get(pool)
        others = [each for flight in self._flying if flight.pool is not pool for each in flight.rows.values()]
        if first is None:
            first = next((each for each in others if each.active and each.run.ends_soon), None)
            if first is not None:
                self._first[pool] = first
        elif not (first.active and first in others):
            del self._first[pool]
            return False
        return first is not None

    def _wait(self, flight: Flight) -> None:
        flight.pending.wait()
        with self._wake:
            self._landed.append(flight)
            self._wake.notify()
