"""Ablations: one part of drafting varies; the text stays the same, its price does not (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import tokenswift_jax as ts
from benchmarking.protocol import drafting
from benchmarking.rows import PLAIN, Row, RowFile, comparison, labels_of, measures, setting
from benchmarking.runs import Contender, Results, play, run_ours, spread
from benchmarking.settings import Settings
from benchmarking.texts import Prompts

_SCHEDULES = ("partial", "fused")
_FIELDS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "ngram_k": ((0, 1, 5, 20), ("fused",)),
    "draft_cache": ((64, 128, 256, 512, 1024, 2048), ("partial",)),
    "refresh_interval": ((16, 64, 256, None), ("partial",)),
    "node_budget": ((1, 3, 7, 15, 31, 63), _SCHEDULES),
    "draft_weights": ((None, "int8", "int4"), _SCHEDULES),
    "draft_cache_dtype": ((None, "int8"), ("partial",)),
    "draft_block": ((None, 16, 32, 64), ("partial",)),
}
"""Fields of `SpeculationConfig` that vary alone: their values, and the schedules of mode tokenswift."""
_WIDTHS = (1, 2, 3)  # candidates of every head
_PENALTIES = (1.0, 1.1, 1.2, 1.4)

Variants = list[tuple[Any, ts.SpeculationConfig]]  # the varied value, as a row states it, and how drafts are made
Group = tuple[ts.SamplingConfig, Variants]  # settings that share a text, and so the plain decoding


def ablations(settings: Settings, emit: RowFile) -> None:
    """One row a setting, written when its group is done; groups that the file has already are not measured again."""
    asked = settings.asked
    prompts = settings.prompts.first(asked.ablation_prefix)
    for name, sampling in settings.samplings.items():
        for ablation in asked.ablations:
            for group in groups(settings, ablation, sampling):
                used, model = group[0], settings.model
                text = setting("ablations", prompts, used.temperature, used.seed)
                text |= {"ablation": ablation, "sampling": name, "sampling_config": asdict(used)}
                text |= {"asked_tokens": asked.ablation_tokens, "rounds": asked.rounds}
                text |= {"heads_of": model.path.name, "head_type": model.config.draft_head_type}
                _measure(settings, emit, prompts, text, group)


def _measure(settings: Settings, emit: RowFile, prompts: Prompts, text: Row, group: Group) -> None:
    """The rows of one group, plain decoding's first."""
    sampling, variants = group
    varied = [(None, ts.SpeculationConfig(mode=PLAIN)), *variants]
    rows: list[Row] = [
        text | {"contender": _name(value, speculation), "value": value} | labels_of(speculation)
        for value, speculation in varied
    ]
    found = [row for row in map(emit.find, rows) if row is not None]
    if len(found) == len(rows):
        settings.report(f"{text['ablation']}: found in the file")
        emit.rows.extend(found)
        return
    settings.report(f"ablations: {text['ablation']}, {text['sampling']}, {len(rows)} settings")

    def contender(row: Row, speculation: ts.SpeculationConfig) -> Contender:
        options = sampling, speculation, settings.asked.ablation_tokens
        return Contender(row["contender"], lambda i: run_ours(settings.model, prompts.of_round(i), *options), {})

    contenders = [contender(row, speculation) for row, (_, speculation) in zip(rows, varied, strict=True)]
    results = play(contenders, settings.asked.rounds, settings.report)
    for row in rows:
        name = row["contender"]
        emit(row | measures(results, name) | _drafting(results, name) | comparison(results, name, greedy=True))


def _drafting(results: Results, name: str) -> Row:
    """`protocol.drafting` over a contender's runs: the spread of the acceptance, means of the rest."""
    counted = [drafting(run.records) for run in results.runs[name] if run.records is not None]
    accepted, ngrams = (sum(one[key] for one in counted) for key in ("accepted_tokens", "ngram_accepted_tokens"))
    distinct = [one["distinct_n"] for one in counted]
    return {
        "acceptance_rate": spread(one["acceptance_rate"] for one in counted),
        "ngram_share": ngrams / accepted if accepted else None,
        "distinct_n": {n: sum(one[n] for one in distinct) / len(distinct) for n in distinct[0]},
    }


def _name(value: Any, speculation: ts.SpeculationConfig) -> str:
    if speculation.mode == PLAIN:
        return PLAIN
    schedule = f" {speculation.schedule}" if speculation.mode == "tokenswift" else ""
    return f"{speculation.mode}{schedule}, {value}"


def groups(settings: Settings, ablation: str, sampling: ts.SamplingConfig) -> Iterator[Group]:
    """The groups of an ablation."""
    if ablation in _FIELDS:
        values, schedules = _FIELDS[ablation]
        chosen = [(schedule, value) for schedule in schedules for value in _some(settings, values)]
        yield sampling, [(v, _base(settings, schedule, **{ablation: v})) for schedule, v in chosen]
    else:
        yield from _OTHERS[ablation](settings, sampling)


def _base(settings: Settings, schedule: str, **changes: Any) -> ts.SpeculationConfig:
    fields = {"node_budget": settings.asked.node_budget, "draft_cache": settings.asked.draft_cache} | changes
    return ts.SpeculationConfig("tokenswift", schedule, **fields)


def _some(settings: Settings, values: Sequence[Any]) -> Sequence[Any]:
    return [values[0], values[-1]] if settings.asked.quick else values


def _trees(settings: Settings, sampling: ts.SamplingConfig) -> Iterator[Group]:
    """Whole trees without n-grams: shapes, and the checkpoint's node set where it has one."""
    heads, sets = settings.model.config.num_draft_heads, settings.model.config.node_sets
    variants: Variants = []
    for schedule in _SCHEDULES:
        shapes: list[tuple[int, ...] | None] = [(1, *[width] * heads) for width in _some(settings, _WIDTHS)]
        for shape in [*shapes, *([None] if getattr(sets, schedule) is not None else [])]:
            name = "the node set" if shape is None else ",".join(map(str, shape))
            variants.append((name, _base(settings, schedule, tree=shape, node_budget=None, ngram_k=0)))
    yield sampling, variants


def _penalties(settings: Settings, sampling: ts.SamplingConfig) -> Iterator[Group]:
    """Each penalty has a text of its own."""
    for penalty in _some(settings, _PENALTIES):
        both = [(penalty, _base(settings, schedule)) for schedule in _SCHEDULES]
        yield replace(sampling, repetition_penalty=penalty), both


def _shared_noise(settings: Settings, sampling: ts.SamplingConfig) -> Iterator[Group]:
    if sampling.temperature == 0:
        settings.report("ablations: shared_noise is left out where nothing is drawn (temperature 0)")
        return
    modes = [_base(settings, schedule) for schedule in _SCHEDULES]
    modes.append(ts.SpeculationConfig("selfspec", draft_cache=settings.asked.draft_cache))
    both = (("on", True), ("off", False))
    variants = [(name, replace(one, shared_noise=on)) for one in _some(settings, modes) for name, on in both]
    yield sampling, variants


_OTHERS: dict[str, Callable[[Settings, ts.SamplingConfig], Iterator[Group]]] = {
    "tree": _trees,
    "penalty": _penalties,
    "shared_noise": _shared_noise,
}
ABLATIONS = (*_FIELDS, *_OTHERS)
