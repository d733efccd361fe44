"""Host work per token, from a profile: the time in which the device executes nothing although text is awaited."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
from jax.profiler import ProfileData, ProfileOptions

import tokenswift_jax as ts
from benchmarking.rounds import spread
from benchmarking.texts import Prompts
from tokenswift_jax.model import Model

WINDOW = "decode"  # the mark of what a profile is about
_GREEDY = ts.SamplingConfig(temperature=0.0)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Trace:
    """A profile of one decode.

    Attributes:
      window: begin and end of the decode, in ns.
      busy: when the device executed something, ns, in any order, overlapping where threads do.
      thunks: durations in us of every operation of the device, by name.
    """

    window: Interval
    busy: list[Interval]
    thunks: dict[str, list[float]]

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


@dataclass(frozen=True)
class Streamed:
    """One text streamed through the public API.

    Attributes:
      seconds: from the first token to the result, text and statistics included.
      thread_seconds: processor time of the calling thread in them.
      tokens: that came in them.
      iterations: passes of the target in them.
      compile_seconds: of the whole call.
    """

    seconds: float
    thread_seconds: float
    tokens: int
    iterations: int
    compile_seconds: float


def stream_text(
    model: Model,
    prompt: list[int],
    speculation: ts.SpeculationConfig,
    new_tokens: int,
    sampling: ts.SamplingConfig = _GREEDY,
) -> Streamed:
    """Streams a text, as a caller would, the part after the first token under the profiler's mark."""
    events = ts.stream(model, prompt, sampling, speculation, max_new_tokens=new_tokens, ignore_eos=True)
    next(events)
    result = None
    begun, thread_begun = time.perf_counter(), time.thread_time()
    with jax.profiler.TraceAnnotation(WINDOW):
        for event in events:
            result = event.result or result
    seconds, thread_seconds = time.perf_counter() - begun, time.thread_time() - thread_begun
    assert result is not None, "the last event carries the result"
    return Streamed(seconds, thread_seconds, result.generated_tokens - 1, result.iterations, result.compile_seconds)


def measure_host(
    model: Model, prompts: Prompts, speculation: ts.SpeculationConfig, new_tokens: int, rounds: int
) -> dict[str, Any]:
    """Fields of a row: the device's idle time per token against the time of a token without the profiler.

    The profiler notes every operation, which lengthens the device's part and not the idle time. `caller_share` is the
    processor time of the calling thread, most of it spent while the device is busy.

    Raises:
      RuntimeError: a timed run compiled.
    """
    compile_seconds = stream_text(model, prompts.of_round(0), speculation, new_tokens).compile_seconds
    idle, share, caller, times = [], [], [], []
    for index in range(rounds):
        prompt = prompts.of_round(index)
        plain = stream_text(model, prompt, speculation, new_tokens)
        with profile() as traces:
            profiled = stream_text(model, prompt, speculation, new_tokens)
        if plain.compile_seconds or profiled.compile_seconds:
            raise RuntimeError("a timed run compiled after its warm-up")
        begin, end = traces[0].window
        idle_seconds = traces[0].idle_share * (end - begin) / 1e9
        idle.append(1e6 * idle_seconds / profiled.tokens)
        share.append(idle_seconds / profiled.tokens / (plain.seconds / plain.tokens))
        caller.append(plain.thread_seconds / plain.seconds)
        times.append(1e3 * plain.seconds / plain.tokens)
    return {
        "runs": rounds,
        "new_tokens": new_tokens,
        "ms_per_token": spread(times),
        "idle_us_per_token": spread(idle),
        "host_share": spread(share),
        "caller_share": spread(caller),
        "compile_seconds_excluded": compile_seconds,
    }


@contextmanager
def profile():
    """A list that holds the `Trace` of the block once it has ended; one part of the block is marked as `WINDOW`."""
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
    """The decode's window and what the device did: planes of devices, or XLA's own threads on a CPU."""
    planes = list(data.planes)
    devices = [line for plane in planes if plane.name.startswith("/device:") for line in plane.lines]
    host = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    working = [line for line in devices or host if devices or line.name.startswith("tf_XLA")]
    busy: list[Interval] = []
    thunks: dict[str, list[float]] = defaultdict(list)
    for line in working:
        for event in line.events:
            busy.append((event.start_ns, event.start_ns + event.duration_ns))
            thunks[event.name].append(event.duration_ns / 1e3)
    marks = [event for line in host for event in line.events if event.name == WINDOW]
    if len(marks) != 1 or not busy:
        raise RuntimeError(f"the profile holds {len(marks)} decodes and {len(busy)} operations of the device")
    return Trace((marks[0].start_ns, marks[0].start_ns + marks[0].duration_ns), busy, dict(thunks))


def origins(executables: Iterable[Any]) -> dict[str, str]:
    """What compiled programs say about their operations, by name as a `Trace` has it: shape and the path of calls."""
    found: dict[str, str] = {}
    for executable in executables:
        for line in (executable.as_text() or "").splitlines():
            match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(?[\w\[\],]+)", line)
            if match:
                path = re.search(r'op_name="([^"]*)"', line)
                said = f"{match[2]} {path[1] if path else ''}"
                found[match[1]] = said
                found.setdefault(re.sub(r"\W", "_", match[1]), said)  # how GPUs name a kernel
    return found
