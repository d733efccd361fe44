"""Ablations: one thing is varied, everything else stays; the text is the same, its price is not (paper section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from benchmarking.contenders import labels_of
from benchmarking.fields import PLAIN, comparison, setting
from benchmarking.rounds import Contender, Results, measures, play, spread
from benchmarking.rowfile import Row, RowFile
from benchmarking.runs import Run, run_ours
from benchmarking.settings import Settings
from benchmarking.texts import Prompts
from tokenswift_jax import stats
from tokenswift_jax.model import Model
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.draft_model import with_draft_model
from tokenswift_jax.speculate.plans import speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

_T = TypeVar("_T")
_NGRAM_K = (0, 1, 5, 20)
_DRAFT_CACHES = (64, 128, 256, 512, 1024, 2048)
_REFRESH_INTERVALS = (16, 64, 256, None)
_WIDTHS = (1, 2, 3)  # candidates of every head
_NODE_BUDGETS = (1, 3, 7, 15, 31, 63)
_DRAFT_WEIGHTS = (None, "int8", "int4")
_DRAFT_CACHE_DTYPES = (None, "int8")
_DRAFT_BLOCKS = (None, 16, 32, 64)
_PENALTIES = (1.0, 1.1, 1.2, 1.4)


@dataclass(frozen=True)
class Group:
    """Settings that share a text, and so the plain decoding they are compared with.

    Attributes:
      model, sampling: what the text depends on.
      variants: the value of what is varied, as a row states it, and how drafts are made.
    """

    model: Model
    sampling: SamplingConfig
    variants: list[tuple[Any, SpeculationConfig]]


def ablations(settings: Settings, emit: RowFile) -> None:
    """One row a setting, written when its group is done; groups that the file has already are not measured again."""
    asked = settings.ablations
    prompts = settings.prompts.first(asked.prefix)
    for name, sampling in settings.samplings.items():
        for ablation in asked.names:
            for group in ABLATIONS[ablation](settings, sampling):
                text = setting("ablations", prompts, group.sampling.temperature, group.sampling.seed)
                text |= {"ablation": ablation, "sampling": name, "sampling_config": asdict(group.sampling)}
                text |= {"asked_tokens": asked.tokens, "rounds": settings.rounds}
                text |= {"heads_of": group.model.path.name, "head_type": group.model.config.draft_head_type}
                _measure(settings, emit, prompts, text, group)


def _measure(settings: Settings, emit: RowFile, prompts: Prompts, text: Row, group: Group) -> None:
    """The rows of one group, plain decoding's first."""
    varied = [(None, SpeculationConfig(mode=PLAIN)), *group.variants]
    rows: list[Row] = [
        text | {"contender": _name(value, speculation), "value": value} | labels_of(speculation)
        for value, speculation in varied
    ]
    found = [emit.find(row) for row in rows]
    if all(row is not None for row in found):
        settings.report(f"{text['ablation']}: found in the file")
        for row in found:
            assert row is not None
            emit.keep(row)
        return
    settings.report(f"ablations: {text['ablation']}, {text['sampling']}, {len(rows)} settings")
    contenders = [
        Contender(row["contender"], _runner(settings, prompts, group, speculation), {})
        for row, (_, speculation) in zip(rows, varied, strict=True)
    ]
    speculations = {row["contender"]: speculation for row, (_, speculation) in zip(rows, varied, strict=True)}
    results = play(contenders, settings.rounds, settings.report)
    for row in rows:
        contender = row["contender"]
        drafted = drafting(results, contender)
        row |= {"drafting_bytes": drafting_bytes(group.model, speculations[contender])}
        emit(row | measures(results, contender) | drafted | comparison(results, contender, greedy=True))


def drafting_bytes(model: Model, speculation: SpeculationConfig) -> int | None:
    """Bytes of the weights that drafts are made with, embeddings and all; None where none are."""
    if speculation.mode in (PLAIN, "ngram"):
        return None
    params = model.params
    if speculation.draft_weights is not None:
        plans = speculative_plans(model.config, speculation, SamplingFeatures.SAMPLED, jax.default_backend())
        params = with_draft_model(model, plans, speculation.draft_weights)[1]
    # An int4 array's nbytes counts a byte a number.
    leaves = jax.tree.leaves(params)
    return sum(leaf.size // 2 if leaf.dtype == jnp.int4 else leaf.nbytes for leaf in leaves)


def _runner(settings: Settings, prompts: Prompts, group: Group, speculation: SpeculationConfig) -> Callable[[int], Run]:
    tokens = settings.ablations.tokens
    return lambda i: run_ours(group.model, prompts.of_round(i), group.sampling, speculation, tokens)


def drafting(results: Results, name: str) -> dict[str, Any]:
    """Acceptance, the n-grams' share of what was accepted (None without any), Distinct-n; over a contender's runs."""
    counted, distinct = [], []
    for run in results.runs[name]:
        assert run.records is not None
        counted.append(stats.acceptance(run.records))
        distinct.append(stats.distinct_n(run.records.token_ids))
    accepted = sum(one["accepted_tokens"] for one in counted)
    ngrams = sum(one["ngram_accepted_tokens"] for one in counted)
    return {
        "acceptance_rate": spread(one["acceptance_rate"] for one in counted),
        "ngram_share": ngrams / accepted if accepted else None,
        "distinct_n": {n: sum(one[n] for one in distinct) / len(distinct) for n in distinct[0]},
    }


def _name(value: Any, speculation: SpeculationConfig) -> str:
    if speculation.mode == PLAIN:
        return PLAIN
    schedule = f" {speculation.schedule}" if speculation.mode == "tokenswift" else ""
    return f"{speculation.mode}{schedule}, {value}"


def _base(settings: Settings, schedule: str, **changes: Any) -> SpeculationConfig:
    budget = changes.pop("node_budget", settings.node_budget)
    cache = changes.pop("draft_cache", settings.draft_cache)
    return SpeculationConfig("tokenswift", schedule, node_budget=budget, draft_cache=cache, **changes)


def _some(settings: Settings, values: Sequence[_T]) -> Sequence[_T]:
    return [values[0], values[-1]] if settings.ablations.ends_only else values


def _vary(field: str, values: Sequence[Any], schedules: Sequence[str]) -> Callable[..., Iterator[Group]]:
    """An ablation of one field of `SpeculationConfig`."""

    def groups(settings: Settings, sampling: SamplingConfig) -> Iterator[Group]:
        chosen = [(schedule, value) for schedule in schedules for value in _some(settings, values)]
        variants = [(value, _base(settings, schedule, **{field: value})) for schedule, value in chosen]
        yield Group(settings.model, sampling, variants)

    return groups


def _trees(settings: Settings, sampling: SamplingConfig) -> Iterator[Group]:
    """Whole trees without n-grams: shapes, and the checkpoint's node set where it has one."""
    heads, sets = settings.model.config.num_draft_heads, settings.model.config.node_sets
    variants: list[tuple[Any, SpeculationConfig]] = []
    for schedule in ("partial", "fused"):
        shapes: list[tuple[int, ...] | None] = [(1, *[width] * heads) for width in _some(settings, _WIDTHS)]
        shapes += [None] if getattr(sets, schedule) is not None else []
        for shape in shapes:
            name = "the node set" if shape is None else ",".join(map(str, shape))
            variants.append((name, _base(settings, schedule, tree=shape, node_budget=None, ngram_k=0)))
    yield Group(settings.model, sampling, variants)


def _penalties(settings: Settings, sampling: SamplingConfig) -> Iterator[Group]:
    """Each penalty has a text of its own."""
    for theta in _some(settings, _PENALTIES):
        penalised = replace(sampling, repetition_penalty=theta)
        both = [(theta, _base(settings, schedule)) for schedule in ("partial", "fused")]
        yield Group(settings.model, penalised, both)


def _shared_noise(settings: Settings, sampling: SamplingConfig) -> Iterator[Group]:
    if sampling.temperature == 0:
        settings.report("ablations: shared_noise is left out where nothing is drawn (temperature 0)")
        return
    drafting_modes = [_base(settings, "partial"), _base(settings, "fused")]
    drafting_modes.append(SpeculationConfig("selfspec", draft_cache=settings.draft_cache))
    variants = [
        ("on" if shared else "off", replace(speculation, shared_noise=shared))
        for speculation in _some(settings, drafting_modes)
        for shared in (True, False)
    ]
    yield Group(settings.model, sampling, variants)


def _heads(settings: Settings, sampling: SamplingConfig) -> Iterator[Group]:
    """Two checkpoints that differ in their heads."""
    other = settings.ablations.heads
    if other is None:
        settings.report("ablations: heads is left out without --heads-checkpoint")
        return
    for model in (settings.model, other):
        kind = model.config.draft_head_type
        yield Group(model, sampling, [(kind, _base(settings, schedule)) for schedule in ("partial", "fused")])


ABLATIONS: dict[str, Callable[[Settings, SamplingConfig], Iterator[Group]]] = {
    "ngram_k": _vary("ngram_k", _NGRAM_K, ("fused",)),
    "draft_cache": _vary("draft_cache", _DRAFT_CACHES, ("partial",)),
    "refresh_interval": _vary("refresh_interval", _REFRESH_INTERVALS, ("partial",)),
    "tree": _trees,
    "node_budget": _vary("node_budget", _NODE_BUDGETS, ("partial", "fused")),
    "penalty": _penalties,
    "shared_noise": _shared_noise,
    "draft_weights": _vary("draft_weights", _DRAFT_WEIGHTS, ("partial", "fused")),
    "draft_cache_dtype": _vary("draft_cache_dtype", _DRAFT_CACHE_DTYPES, ("partial",)),
    "draft_block": _vary("draft_block", _DRAFT_BLOCKS, ("partial",)),
    "heads": _heads,
}
