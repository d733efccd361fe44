"""Profiles of a device: intervals and operations of a block under jax's profiler, and the slowest ones of a step."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
from jax.profiler import ProfileData, ProfileOptions

from tokenswift_jax.hardware.filled_steps import FilledStep, milliseconds_a_pass

WINDOW = "decode"
"""Name of the annotation around the part of a block that a profile is about."""
TOP = 15
"""Operations that `slowest` lists."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Trace:
    """A profile of one window.

    Attributes:
      window: begin and end of the window, in ns.
      busy: when the device executed something, ns, in any order, overlapping where threads do.
      operations: durations in us of every operation of the device, by name.
    """

    window: Interval
    busy: list[Interval]
    operations: dict[str, list[float]]

    @property
    def idle_share(self) -> float:
        """Share of the window in which the device executed nothing."""
        begin, end = self.window
        return 1 - covered(self.busy, self.window) / (end - begin)


def covered(intervals: Iterable[Interval], window: Interval) -> float:
    """Length of the union of the intervals within the window."""
    total, reached = 0.0, window[0]
    for begin, end in sorted(intervals):
        begin, end = max(begin, reached), min(end, window[1])
        if end > begin:
            total, reached = total + end - begin, end
    return total


@contextmanager
def profile() -> Iterator[list[Trace]]:
    """A list that contains the block's `Trace` once the block has ended; the block annotates one part as `WINDOW`."""
    options: Any = ProfileOptions()
    options.python_tracer_level = 0
    traces: list[Trace] = []
    with TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            yield traces
        finally:
            jax.profiler.stop_trace()
        (file,) = Path(folder).rglob("*.xplane.pb")
        traces.append(read_trace(ProfileData.from_file(str(file))))


def read_trace(data: Any) -> Trace:
    """The window and the device's work: planes of devices, or XLA's own threads on a CPU.

    Raises:
      RuntimeError: the profile does not contain exactly one window, or no operation.
    """
    planes = list(data.planes)
    devices = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
    host = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    working = [line for line in devices or host if devices or line.name.startswith("tf_XLA")]
    busy: list[Interval] = []
    operations: dict[str, list[float]] = defaultdict(list)
    for line in working:
        for event in line.events:
            busy.append((event.start_ns, event.start_ns + event.duration_ns))
            operations[event.name].append(event.duration_ns / 1e3)
    marks = [event for line in host for event in line.events if event.name == WINDOW]
    if len(marks) != 1 or not busy:
        raise RuntimeError(f"the profile has {len(marks)} decodes and {len(busy)} operations of the device")
    return Trace((marks[0].start_ns, marks[0].start_ns + marks[0].duration_ns), busy, dict(operations))


def origins(executable: Any) -> dict[str, str]:
    """Shape and call path of a program's operations, by the names that a `Trace` has for them."""
    found: dict[str, str] = {}
    for line in (executable.as_text() or "").splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(?[\w\[\],]+)", line)
        if match:
            path = re.search(r'op_name="([^"]*)"', line)
            origin = f"{match[2]} {path[1] if path else ''}"
            found[match[1]] = origin
            found.setdefault(re.sub(r"\W", "_", match[1]), origin)  # how GPUs name a kernel
    return found


def slowest(step: FilledStep, name: str, length: int) -> Iterator[dict[str, Any]]:
    """A row with the time of a pass and how long of it the device is busy, then one for each of the `TOP` operations
    that take longest, with their origins.

    The pass is timed without the profiler, under which GPUs launch the kernels of a graph one by one. An operation that
    contains others (a loop) is listed beside them; kernels that several operations share are given one's origin.
    """
    milliseconds = milliseconds_a_pass(step)["milliseconds"]
    with profile() as traces, jax.profiler.TraceAnnotation(WINDOW):
        passes, _ = step.call()
    (trace,) = traces
    about = {"step": name, "length": length}
    yield about | {"milliseconds": milliseconds, "busy_milliseconds": covered(trace.busy, trace.window) / 1e6 / passes}
    known = origins(step.executable)
    taken = {operation: sum(times) / passes for operation, times in trace.operations.items()}
    for operation in sorted(taken, key=taken.__getitem__, reverse=True)[:TOP]:
        yield about | {
            "operation": operation,
            "microseconds_a_pass": taken[operation],
            "calls_a_pass": len(trace.operations[operation]) / passes,
            "origin": known.get(operation),
        }
