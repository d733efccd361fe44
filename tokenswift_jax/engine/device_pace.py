"""The pace at which the host waits for the device while it reports progress."""

from __future__ import annotations

import time
from typing import Any

import jax

from tokenswift_jax.progress_report import Report, silent

# Each wait costs the latency of one dispatch, and a person reads only a few reports a second.
_SECONDS_BETWEEN_WAITS = 0.25
_MOST_CHUNKS_BETWEEN_WAITS = 64


class DevicePace:
    """Waits for the device now and then, so that progress reports describe finished work.

    Without waits, the host reports chunks that the device has yet to begin (dispatch returns at once). The host waits
    about every quarter of a second: after one chunk of a large model, after many chunks of a small one.
    """

    def __init__(self, report: Report) -> None:
        self._enabled = report is not silent
        self._chunks, self._since_wait = 1, 0
        self._waited_at = time.perf_counter()

    def wait(self, result: Any) -> bool:
        """Waits for `result`, the newest chunk's, if a wait is due and progress is reported; returns whether it did."""
        self._since_wait += 1
        if not self._enabled or self._since_wait < self._chunks:
            return False
        jax.block_until_ready(result)
        now = time.perf_counter()
        if now - self._waited_at < _SECONDS_BETWEEN_WAITS:
            self._chunks = min(2 * self._chunks, _MOST_CHUNKS_BETWEEN_WAITS)
        else:
            self._chunks = max(self._chunks // 2, 1)
        self._waited_at, self._since_wait = now, 0
        return True
