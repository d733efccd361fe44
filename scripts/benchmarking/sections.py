"""The usual sections of the benchmark, each a question with its rows."""

from __future__ import annotations

import itertools

import tokenswift_jax as ts
from benchmarking.rows import PLAIN, Row, RowFile, comparison, labels_of, measures, setting
from benchmarking.runs import Contender, paired_ratios, play, run_ours, spread
from benchmarking.settings import Settings, speculation_of
from benchmarking.tasks import task_prompts
from benchmarking.texts import Prompts, random_ids

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
    return Contender(
        name=mode if capacity is None else f"{mode}, capacity {capacity:,}",
        run=lambda i: run_ours(settings.model, prompts.of_round(i), sampling, speculation, tokens, capacity),
        labels=labels_of(speculation),
        fixed=mode != "auto",
    )


def speed(settings: Settings, emit: RowFile) -> None:
    """Every mode against plain decoding and against transformers' generate, by prefix and temperature."""
    for prefix, temperature in itertools.product(settings.asked.prefixes, settings.asked.temperatures):
        _compare(settings, emit, settings.prompts.first(prefix), temperature, {"section": "speed"}, set())


def tasks(settings: Settings, emit: RowFile) -> None:
    """Tasks that people give a model, by prefix and temperature: every mode, transformers' generate and llama.cpp."""
    asked = settings.asked
    for prefix, temperature in itertools.product(asked.prefixes, asked.temperatures):
        warm: set[str] = set()  # the tasks of one length and temperature run the same programs
        for name in asked.tasks:
            prompts = task_prompts(settings.model, asked.prompt_file, name, prefix, asked.rounds)
            _compare(settings, emit, prompts, temperature, {"section": "tasks", "text": name, "prefix": prefix}, warm)


def _compare(
    settings: Settings, emit: RowFile, prompts: Prompts, temperature: float, about: Row, warm: set[str]
) -> None:
    """The rows of every mode and of other programs on the same prompts; `warm` gets the names of those that ran."""
    asked, greedy = settings.asked, temperature == 0
    settings.report(f"{', '.join(map(str, about.values()))}: {len(prompts.of_round(0)):,} tokens, {temperature:g}")
    contenders = [_ours(settings, mode, prompts, temperature, asked.new_tokens) for mode in asked.modes]
    sampling = ts.SamplingConfig(temperature=temperature, seed=asked.seed)
    others = [llama.contender(prompts, sampling, asked.new_tokens) for llama in settings.llamas if "text" in about]
    if settings.other is not None:
        lookups = (False, True) if greedy else (False,)
        others += [settings.other.contender(prompts, sampling, asked.new_tokens, lookup) for lookup in lookups]
    if "text" in about:
        warm.update(other.name for other in others)  # nothing compiles there
    contenders += others
    results = play(contenders, asked.rounds, settings.report, warm)
    warm.update(contender.name for contender in contenders)
    for contender in contenders:
        row = setting(about["section"], prompts, temperature, asked.seed) | about
        row |= {"contender": contender.name, **contender.labels} | measures(results, contender.name)
        emit(row | comparison(results, contender.name, greedy=greedy))


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
                assert auto[-1].result is not None
                row |= {"schedule_trace": auto[-1].result.schedule_trace}
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
        options = _speculation(settings, mode), asked.new_tokens
        warm_up = contender.run(0)
        found = [ts.host_work(settings.model, prompts.of_round(i), *options) for i in range(asked.rounds)]
        row |= {name: spread(one[name] for one in found) for name in found[0]}
        row |= {"compile_seconds_excluded": warm_up.compile_seconds}
        emit(row | {"runs": asked.rounds, "new_tokens": asked.new_tokens})
