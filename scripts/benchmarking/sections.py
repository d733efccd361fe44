"""The parts of the benchmark, each a question with its rows."""

from __future__ import annotations

from benchmarking.fields import PLAIN, comparison, setting
from benchmarking.hosting import measure_host
from benchmarking.rounds import measures, paired_ratios, play
from benchmarking.rowfile import RowFile
from benchmarking.settings import Settings
from benchmarking.texts import random_ids

_ADVERSARIAL_TEMPERATURE = 5.0  # nearly uniform draws: no draft is ever right


def speed(settings: Settings, emit: RowFile) -> None:
    """Every mode against plain decoding and against transformers' generate, by prefix and temperature."""
    for prefix in settings.prefixes:
        prompts = settings.prompts.first(prefix)
        for temperature in settings.temperatures:
            settings.report(f"speed: prefix {prefix:,}, temperature {temperature:g}")
            contenders = [settings.ours(mode, prompts, temperature, settings.new_tokens) for mode in settings.modes]
            if settings.other is not None:
                contenders.append(settings.transformers(prompts, temperature, lookup=False))
                if temperature == 0:
                    contenders.append(settings.transformers(prompts, temperature, lookup=True))
            results = play(contenders, settings.rounds, settings.report)
            for contender in contenders:
                emit(
                    setting("speed", prompts, temperature, settings.seed)
                    | {"contender": contender.name, **contender.labels}
                    | measures(results, contender.name)
                    | comparison(results, contender.name, greedy=temperature == 0)
                )


def auto_long(settings: Settings, emit: RowFile) -> None:
    """`auto` against plain decoding over a long text, its trials and changes of plan included (wall time)."""
    prefix = settings.prefixes[0]
    prompts = settings.prompts.first(prefix)
    texts = [("greedy" if not t else "sampled", prompts, t) for t in settings.temperatures]
    if any(settings.temperatures):
        chaos = random_ids(settings.model, prefix, settings.rounds, settings.seed)
        texts.append(("adversarial", chaos, _ADVERSARIAL_TEMPERATURE))
    for name, prompts, temperature in texts:
        settings.report(f"auto-long: {name}")
        contenders = [settings.ours(mode, prompts, temperature, settings.long_tokens) for mode in (PLAIN, "auto")]
        results = play(contenders, settings.rounds, settings.report)
        plain, auto = (results.runs[contender.name] for contender in contenders)
        for contender in contenders:
            row = setting("auto-long", prompts, temperature, settings.seed) | {
                "text": name,
                "contender": contender.name,
            }
            row |= contender.labels | measures(results, contender.name)
            if contender.name == "auto":
                row["wall_speed_vs_autoregressive"] = paired_ratios(
                    [run.wall_ms_per_token for run in plain], [run.wall_ms_per_token for run in auto]
                )
                row["schedule_trace"] = auto[-1].schedule_trace
            emit(row | comparison(results, contender.name, greedy=temperature == 0))


def capacity(settings: Settings, emit: RowFile) -> None:
    """The same text in a small cache and in a large one of which as little is in use."""
    prompts, small, large = settings.prompts.first(settings.prefixes[0]), *settings.capacities
    for mode in [mode for mode in settings.modes if mode in (PLAIN, "tokenswift")]:
        settings.report(f"capacity: {mode}")
        contenders = [settings.ours(mode, prompts, 0.0, settings.new_tokens, size) for size in (small, large)]
        results = play(contenders, settings.rounds, settings.report)
        times = [[run.ms_per_token for run in results.runs[contender.name]] for contender in contenders]
        for contender, size, own in zip(contenders, (small, large), times, strict=True):
            row = setting("capacity", prompts, 0.0, settings.seed) | {"contender": contender.name, **contender.labels}
            row |= {"capacity": size} | measures(results, contender.name)
            if size == large:
                row[f"time_vs_capacity_{small}"] = paired_ratios(own, times[0])
            emit(row)


def host(settings: Settings, emit: RowFile) -> None:
    """Host work per token, by profiling: what of the time to stream a text is not device execution."""
    prompts = settings.prompts.first(settings.prefixes[0])
    for mode in [mode for mode in settings.modes if mode != "auto"]:
        settings.report(f"host: {mode}")
        contender = settings.ours(mode, prompts, 0.0, settings.new_tokens)
        row = setting("host", prompts, 0.0, settings.seed) | {"contender": contender.name, **contender.labels}
        speculation = settings.speculation(mode)
        emit(row | measure_host(settings.model, prompts, speculation, settings.new_tokens, settings.rounds))
