"""The usual sections of the benchmark, each a question with its rows."""

from __future__ import annotations

import time
from typing import Any

import jax

import tokenswift_jax as ts
from benchmarking.rows import PLAIN, RowFile, comparison, measures, setting
from benchmarking.runs import Contender, paired_ratios, play, run_ours, spread
from benchmarking.settings import Settings, speculation_of
from benchmarking.texts import Prompts, random_ids
from tokenswift_jax.hardware.profiler import WINDOW, profile

_ADVERSARIAL_TEMPERATURE = 5.0  # nearly uniform draws: no draft is ever right


def _speculation(settings: Settings, mode: str) -> ts.SpeculationConfig:
    name = "tokenswift-fused" if mode == "tokenswift" else mode
    return speculation_of(name, settings.asked.node_budget, ts.SpeculationConfig().draft_cache)


def _ours(
    settings: Settings, mode: str, prompts: Prompts, temperature: float, tokens: int, capacity: int | None = None
) -> Contender:
    """A mode of this package, with the default sampling of transformers without filters."""
    speculation = _speculation(settings, mode)
    sampling = ts.SamplingConfig(temperature=temperature, seed=settings.asked.seed)
    labels = {"implementation": "tokenswift_jax", "mode": mode, "node_budget": speculation.node_budget}
    return Contender(
        name=mode if capacity is None else f"{mode}, capacity {capacity:,}",
        run=lambda i: run_ours(settings.model, prompts.of_round(i), sampling, speculation, tokens, capacity),
        labels=labels | {"schedule": speculation.schedule if mode == "tokenswift" else None},
        fixed=mode != "auto",
    )


def speed(settings: Settings, emit: RowFile) -> None:
    """Every mode against plain decoding and against transformers' generate, by prefix and temperature."""
    asked = settings.asked
    for prefix in asked.prefixes:
        prompts = settings.prompts.first(prefix)
        for temperature in asked.temperatures:
            settings.report(f"speed: prefix {prefix:,}, temperature {temperature:g}")
            contenders = [_ours(settings, mode, prompts, temperature, asked.new_tokens) for mode in asked.modes]
            if settings.other is not None:
                sampling = ts.SamplingConfig(temperature=temperature, seed=asked.seed)
                for lookup in (False, True)[: 2 if temperature == 0 else 1]:
                    contenders.append(settings.other.contender(prompts, sampling, asked.new_tokens, lookup))
            results = play(contenders, asked.rounds, settings.report)
            for contender in contenders:
                emit(
                    setting("speed", prompts, temperature, asked.seed)
                    | {"contender": contender.name, **contender.labels}
                    | measures(results, contender.name)
                    | comparison(results, contender.name, greedy=temperature == 0)
                )


def auto_long(settings: Settings, emit: RowFile) -> None:
    """`auto` against plain decoding over a long text, its trials and changes of plan included (wall time)."""
    asked = settings.asked
    prompts = settings.prompts.first(asked.prefixes[0])
    texts = [("greedy" if not t else "sampled", prompts, t) for t in asked.temperatures]
    if any(asked.temperatures):
        chaos = random_ids(settings.model, asked.prefixes[0], asked.rounds, asked.seed)
        texts.append(("adversarial", chaos, _ADVERSARIAL_TEMPERATURE))
    for name, prompts, temperature in texts:
        settings.report(f"auto-long: {name}")
        contenders = [_ours(settings, mode, prompts, temperature, asked.long_tokens) for mode in (PLAIN, "auto")]
        results = play(contenders, asked.rounds, settings.report)
        plain, auto = (results.runs[contender.name] for contender in contenders)
        for contender in contenders:
            row = setting("auto-long", prompts, temperature, asked.seed)
            row |= {"text": name, "contender": contender.name} | contender.labels | measures(results, contender.name)
            if contender.name == "auto":
                times = ([run.wall_ms_per_token for run in runs] for runs in (plain, auto))
                row |= {"wall_speed_vs_autoregressive": paired_ratios(*times)}
                row |= {"schedule_trace": auto[-1].schedule_trace}
            emit(row | comparison(results, contender.name, greedy=temperature == 0))


def capacity(settings: Settings, emit: RowFile) -> None:
    """The same text in a small cache and in a large one of which as little is in use."""
    asked = settings.asked
    prompts, small, large = settings.prompts.first(asked.prefixes[0]), *asked.capacities
    for mode in [mode for mode in asked.modes if mode in (PLAIN, "tokenswift")]:
        settings.report(f"capacity: {mode}")
        contenders = [_ours(settings, mode, prompts, 0.0, asked.new_tokens, size) for size in (small, large)]
        results = play(contenders, asked.rounds, settings.report)
        times = [[run.ms_per_token for run in results.runs[contender.name]] for contender in contenders]
        for contender, size, own in zip(contenders, (small, large), times, strict=True):
            row = setting("capacity", prompts, 0.0, asked.seed) | {"contender": contender.name, **contender.labels}
            row |= {"capacity": size} | measures(results, contender.name)
            if size == large:
                row[f"time_vs_capacity_{small}"] = paired_ratios(own, times[0])
            emit(row)


def host(settings: Settings, emit: RowFile) -> None:
    """Host work per token, by profiling: the time to stream a text in which the device executes nothing."""
    asked = settings.asked
    prompts = settings.prompts.first(asked.prefixes[0])
    for mode in [mode for mode in asked.modes if mode != "auto"]:
        settings.report(f"host: {mode}")
        contender = _ours(settings, mode, prompts, 0.0, asked.new_tokens)
        row = setting("host", prompts, 0.0, asked.seed) | {"contender": contender.name, **contender.labels}
        emit(row | _measure_host(settings, prompts, _speculation(settings, mode)))


def _measure_host(settings: Settings, prompts: Prompts, speculation: ts.SpeculationConfig) -> dict[str, Any]:
    """The device's idle time per token against the time of a token without the profiler.

    The profiler notes every operation, which lengthens the device's part and not the idle time. `caller_share` is the
    processor time of the calling thread, most of it spent while the device is busy.

    Raises:
      RuntimeError: a timed run compiled.
    """
    new_tokens, rounds = settings.asked.new_tokens, settings.asked.rounds

    def stream(index: int) -> tuple[float, float, float]:
        """Seconds and processor seconds of the calling thread from the first token on, and seconds of compilation."""
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_eos": True}
        greedy = ts.SamplingConfig(temperature=0.0)
        events = ts.stream(settings.model, prompts.of_round(index), greedy, speculation, **options)
        next(events)
        begun, thread_begun = time.perf_counter(), time.thread_time()
        with jax.profiler.TraceAnnotation(WINDOW):
            results = [event.result for event in events]
        seconds, thread_seconds = time.perf_counter() - begun, time.thread_time() - thread_begun
        assert results[-1] is not None, "the last event carries the result"
        return seconds, thread_seconds, results[-1].compile_seconds

    compile_seconds, tokens = stream(0)[2], new_tokens - 1
    found: dict[str, list[float]] = {}
    for index in range(rounds):
        seconds, thread_seconds, compiled = stream(index)
        with profile() as traces:
            compiled += stream(index)[2]
        if compiled:
            raise RuntimeError("a timed run compiled after its warm-up")
        begin, end = traces[0].window
        idle = traces[0].idle_share * (end - begin) / 1e9
        figures = {"ms_per_token": 1e3 * seconds / tokens, "idle_us_per_token": 1e6 * idle / tokens}
        figures |= {"host_share": idle / seconds, "caller_share": thread_seconds / seconds}
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    spreads = {name: spread(values) for name, values in found.items()}
    return {"runs": rounds, "new_tokens": new_tokens, **spreads, "compile_seconds_excluded": compile_seconds}
