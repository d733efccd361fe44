"""Host work per token, from a profile: the time in which the device executes nothing although text is awaited."""

from __future__ import annotations

import time
from typing import Any

import jax

import tokenswift_jax as ts
from tokenswift_jax.hardware.profiler import WINDOW, profile


def stream_seconds(
    model: ts.Model, prompt: list[int], speculation: ts.SpeculationConfig, new_tokens: int
) -> dict[str, float]:
    """Times of a greedy text that is streamed as a caller would, the part after the first token in `WINDOW`.

    Returns `seconds` from the first token on, text and statistics included, `thread_seconds` (processor time of the
    calling thread in them) and `compile_seconds` of the whole call.
    """
    greedy, options = ts.SamplingConfig(temperature=0.0), {"max_new_tokens": new_tokens, "ignore_eos": True}
    events: Any = ts.stream(model, prompt, greedy, speculation, **options)
    next(events)
    begun, thread_begun = time.perf_counter(), time.thread_time()
    with jax.profiler.TraceAnnotation(WINDOW):
        last = list(events)[-1].result
    seconds, thread_seconds = time.perf_counter() - begun, time.thread_time() - thread_begun
    return {"seconds": seconds, "thread_seconds": thread_seconds, "compile_seconds": last.compile_seconds}


def host_work(
    model: ts.Model, prompt: list[int], speculation: ts.SpeculationConfig, new_tokens: int
) -> dict[str, float]:
    """Measures the host's share in a greedy text, which it streams twice, the second time under jax's profiler.

    Generate the text once before, so that nothing compiles here. The profiler notes every operation, which lengthens
    the device's part and not its idle time.

    Returns:
      `ms_per_token` without the profiler; `idle_us_per_token`, the time in which the device executes nothing;
      `host_share`, that idle time over all time; `caller_share`, the processor time of the calling thread over all
      time, most of it spent while the device is busy.

    Raises:
      RuntimeError: a timed run compiled.
    """
    plain = stream_seconds(model, prompt, speculation, new_tokens)
    with profile() as traces:
        profiled = stream_seconds(model, prompt, speculation, new_tokens)
    if plain["compile_seconds"] or profiled["compile_seconds"]:
        raise RuntimeError("a timed run compiled after its warm-up")
    begin, end = traces[0].window
    idle, tokens = traces[0].idle_share * (end - begin) / 1e9, new_tokens - 1
    return {
        "ms_per_token": 1e3 * plain["seconds"] / tokens,
        "idle_us_per_token": 1e6 * idle / tokens,
        "host_share": idle / plain["seconds"],
        "caller_share": plain["thread_seconds"] / plain["seconds"],
    }
