"""The parts of the benchmark, each a question with its rows."""

from __future__ import annotations

from typing import Any

from benchmarking.hosting import measure_host
from benchmarking.rounds import Results, measures, paired_ratios, play, same_leading_tokens
from benchmarking.settings import Emit, Settings
from benchmarking.texts import Prompts, random_ids

PLAIN = "autoregressive"
_ADVERSARIAL_TEMPERATURE = 5.0  # nearly uniform draws: no draft is ever right
_BASELINE = "transformers"


def speed(settings: Settings, emit: Emit) -> None:
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
                    _setting("speed", prompts, temperature, settings)
                    | {"contender": contender.name, **contender.labels}
                    | measures(results, contender.name)
                    | _comparison(results, contender.name, greedy=temperature == 0)
                )


def auto_long(settings: Settings, emit: Emit) -> None:
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
            row = _setting("auto-long", prompts, temperature, settings) | {"text": name, "contender": contender.name}
            row |= contender.labels | measures(results, contender.name)
            if contender.name == "auto":
                row["wall_speed_vs_autoregressive"] = paired_ratios(
                    [run.wall_ms_per_token for run in plain], [run.wall_ms_per_token for run in auto]
                )
                row["schedule_trace"] = auto[-1].schedule_trace
            emit(row | _comparison(results, contender.name, greedy=temperature == 0))


def capacity(settings: Settings, emit: Emit) -> None:
    """The same text in a small cache and in a large one of which as little is in use."""
    prompts, small, large = settings.prompts.first(settings.prefixes[0]), *settings.capacities
    for mode in [mode for mode in settings.modes if mode in (PLAIN, "tokenswift")]:
        settings.report(f"capacity: {mode}")
        contenders = [settings.ours(mode, prompts, 0.0, settings.new_tokens, size) for size in (small, large)]
        results = play(contenders, settings.rounds, settings.report)
        times = [[run.ms_per_token for run in results.runs[contender.name]] for contender in contenders]
        for contender, size, own in zip(contenders, (small, large), times, strict=True):
            row = _setting("capacity", prompts, 0.0, settings) | {"contender": contender.name, **contender.labels}
            row |= {"capacity": size} | measures(results, contender.name)
            if size == large:
                row[f"time_vs_capacity_{small}"] = paired_ratios(own, times[0])
            emit(row)


def host(settings: Settings, emit: Emit) -> None:
    """Host work per token, by profiling: what of the time to stream a text is not device execution."""
    prompts = settings.prompts.first(settings.prefixes[0])
    for mode in [mode for mode in settings.modes if mode != "auto"]:
        settings.report(f"host: {mode}")
        contender = settings.ours(mode, prompts, 0.0, settings.new_tokens)
        row = _setting("host", prompts, 0.0, settings) | {"contender": contender.name, **contender.labels}
        speculation = settings.speculation(mode)
        emit(row | measure_host(settings.model, prompts, speculation, settings.new_tokens, settings.rounds))


SECTIONS = {"speed": speed, "auto-long": auto_long, "capacity": capacity, "host": host}


def _setting(section: str, prompts: Prompts, temperature: float, settings: Settings) -> dict[str, Any]:
    return {
        "section": section,
        "prefix": len(prompts.passages[0]),
        "temperature": temperature,
        "seed": settings.seed,
        "prompt": prompts.describe(),
    }


def _comparison(results: Results, name: str, *, greedy: bool) -> dict[str, Any]:
    """How many times faster than the baselines of the same rounds, and how many leading tokens are plain decoding's.

    A sampled text of transformers draws from another generator, so that only greedy ones can be equal.
    """
    fields: dict[str, Any] = {}
    own = [run.ms_per_token for run in results.runs[name]]
    for other in (PLAIN, _BASELINE):
        if other in results.runs and other != name:
            theirs = [run.ms_per_token for run in results.runs[other]]
            fields[f"speed_vs_{other}"] = paired_ratios(theirs, own)
    if PLAIN in results.runs and name != PLAIN and (greedy or not name.startswith(_BASELINE)):
        fields["leading_tokens_equal_to_autoregressive"] = same_leading_tokens(results, name, PLAIN)
    return fields
