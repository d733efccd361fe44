"""The way of updates from the scheduler's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence

from tokenswift_jax.serve.run import Run, RunState, Update

BEAT = 0.08  # seconds between two deliveries; a reader sees no difference


class Delivery:
    """Gathers updates, and hands them to the event loop at most every `BEAT` seconds.

    Without it, a fast model wakes the loop for every chunk (the demo: every 5 ms), and the loop's work takes the cores
    and Python's lock from the threads of the device. The first update after a pause goes at once, and so does one that
    ends or pauses a run, with all before it.
    """

    def __init__(self, deliver: Callable[[Sequence[tuple[Run, Update]]], None]) -> None:
        """`deliver` runs on the event loop's thread."""
        self._deliver = deliver
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()  # guards the two below
        self._waiting: list[tuple[Run, Update]] = []
        self._beating = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Names the event loop; the first update comes after that."""
        self._loop = loop

    def put(self, run: Run, update: Update, *, first: bool = False) -> None:
        """Takes an update, maybe the `first` one of its run; any thread may call it."""
        assert self._loop is not None, "start comes first"
        urgent = first or update.finish is not None or update.state is RunState.PAUSED
        with self._lock:
            self._waiting.append((run, update))
            beating, self._beating = self._beating, True
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody reads any more
            if not beating:
                self._loop.call_soon_threadsafe(self._beat)
            elif urgent:
                self._loop.call_soon_threadsafe(self._hand_over)

    def _beat(self) -> None:
        assert self._loop is not None
        if self._hand_over(last=True):
            self._loop.call_later(BEAT, self._beat)

    def _hand_over(self, *, last: bool = False) -> bool:
        """Delivers the waiting updates; returns whether there were any. If `last`, an empty delivery ends the beat."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            self._beating = self._beating and not (last and not waiting)
        if waiting:
            self._deliver(waiting)
        return bool(waiting)
