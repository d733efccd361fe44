"""Ctrl-C and SIGTERM in several processes: process 0 notes them and ends the text at the border of a chunk.

Without it, process 0 may leave between a message and the program that the message announces, and the other processes
wait in that program forever.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tokenswift_jax.processes import agreement

_noted = threading.Event()


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes signals in the block, in several processes: in process 0 the first one, a second one ends it at once; the
    others leave them to process 0."""
    if not agreement.several() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if _noted.is_set():
            raise KeyboardInterrupt
        _noted.set()

    handler = note if agreement.leads() else signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        _noted.clear()


def check() -> None:
    """Raises KeyboardInterrupt if a signal has been noted."""
    if _noted.is_set():
        raise KeyboardInterrupt
