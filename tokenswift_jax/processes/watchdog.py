"""A watchdog over progress: it ends a process that is stuck, and prints where each of its threads is.

JAX's coordination service notices processes that have died, not those that live and wait: one process in another
program than the rest leaves all of them waiting forever (jax-ml/jax issue 38503).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator

_last = time.monotonic()


def beat() -> None:
    """Records progress."""
    global _last
    _last = time.monotonic()


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Ends the process with status 1 if no progress has been recorded for so many seconds of the block."""
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(seconds, ended), name="tokenswift-watchdog", daemon=True)
    beat()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(seconds: float, ended: threading.Event) -> None:
    while not ended.wait(min(max(_last + seconds - time.monotonic(), 0.05), 5.0)):
        if time.monotonic() - _last >= seconds:
            print(f"error: no progress for {seconds:g} s; this is where each thread is:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(1)
