"""Where a step's time goes on this machine's device, from jax's profiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
from benchmarking.hosting import WINDOW, covered, origins, profile

from hardware.filled import FilledStep, milliseconds_a_pass

TOP = 15


def slowest(step: FilledStep, name: str, length: int) -> Iterator[dict[str, Any]]:
    """A row with the time of a pass and how long of it the device is busy, then one for each of the `TOP` operations
    that take longest, with where they come from.

    The pass is timed without the profiler, under which GPUs launch one by one what else is one graph. An operation that
    holds others (a loop) is listed beside them; kernels that several operations share are given one's origin.
    """
    milliseconds = milliseconds_a_pass(step)["milliseconds"]
    with profile() as traces, jax.profiler.TraceAnnotation(WINDOW):
        passes, _ = step.call()
    (trace,) = traces
    about = {"step": name, "length": length}
    yield about | {"milliseconds": milliseconds, "busy_milliseconds": covered(trace.busy, trace.window) / 1e6 / passes}
    known = origins([step.executable])
    taken = {operation: sum(times) / passes for operation, times in trace.thunks.items()}
    for operation in sorted(taken, key=taken.__getitem__, reverse=True)[:TOP]:
        yield about | {
            "operation": operation,
            "microseconds_a_pass": taken[operation],
            "calls_a_pass": len(trace.thunks[operation]) / passes,
            "origin": known.get(operation),
        }
