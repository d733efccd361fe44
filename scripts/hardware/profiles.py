"""Where a step's time goes on this machine's device, from jax's profiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from benchmarking.hosting import WINDOW, origins, profile

from hardware.filled import FilledStep

TOP = 15


def slowest(step: FilledStep, name: str, length: int) -> Iterator[dict[str, Any]]:
    """A row with the share of the time in which the device does nothing, then one for each of the `TOP` operations that
    take longest, with where they come from. An operation that holds others (a loop) is listed beside them."""
    step.call()  # the first one may still compile what it starts with
    with profile() as traces, jax.profiler.TraceAnnotation(WINDOW):
        passes, _ = step.call()
    (trace,) = traces
    about = {"step": name, "length": length}
    begin, end = trace.window
    yield about | {"microseconds_a_pass": (end - begin) / 1e3 / passes, "idle_share": trace.idle_share}
    known = origins([step.executable])
    taken = {operation: sum(times) / passes for operation, times in trace.thunks.items()}
    for operation in sorted(taken, key=taken.__getitem__, reverse=True)[:TOP]:
        yield about | {
            "operation": operation,
            "microseconds_a_pass": taken[operation],
            "calls_a_pass": len(trace.thunks[operation]) / passes,
            "origin": known.get(operation),
        }
