"""The paper's protocol: long texts after prefixes of books, every contender on the same text (paper section 4)."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from benchmarking.contenders import TRANSFORMERS, labels_of, speculation_of
from benchmarking.environment import load_average
from benchmarking.fields import BASELINE, PLAIN, setting
from benchmarking.rounds import Results, measures
from benchmarking.rowfile import Row, RowFile
from benchmarking.runs import Run, run_ours
from benchmarking.settings import Settings
from benchmarking.texts import Prompts
from benchmarking.windows import by_window, digests, leading_equal, speed_over_equal_windows
from tokenswift_jax import stats
from tokenswift_jax.audit.replay import audit
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig


def protocol(settings: Settings, emit: RowFile) -> None:
    """One row a contender, written when it is done; what the file has already is not measured again."""
    asked = settings.protocol
    for name, sampling in settings.samplings.items():
        for prefix in asked.prefixes:
            for passage in range(asked.passages):
                prompts = settings.prompts.only(passage).first(prefix)
                for tokens in asked.tokens:
                    _measure(settings, emit, prompts, name, sampling, tokens)


def _measure(
    settings: Settings, emit: RowFile, prompts: Prompts, name: str, sampling: SamplingConfig, tokens: int
) -> None:
    """The rows of one text."""
    text = setting("protocol", prompts, sampling.temperature, sampling.seed)
    text |= {"sampling": name, "sampling_config": asdict(sampling), "asked_tokens": tokens}
    text |= {"window_tokens": settings.protocol.windows}
    rows: dict[str, Row] = {}
    for contender in settings.protocol.contenders:
        if contender == TRANSFORMERS and settings.other is None:
            continue
        fields = text | {"contender": contender} | _labels(settings, contender)
        what = f"protocol: {contender}, {tokens:,} tokens after {len(prompts.of_round(0)):,}, {name}"
        found = emit.find(fields)
        audited = settings.protocol.audit and contender.startswith("tokenswift")
        if found is not None and (found.get("audit") is not None or not audited):
            settings.report(f"{what}: found in the file")
            emit.keep(found)
            rows[contender] = found
            continue
        settings.report(what)
        load, begun = load_average(), time.perf_counter()
        run = _run(settings, contender, prompts.of_round(0), sampling, tokens)
        fields |= {"load_average_at_begin": load, "load_average_at_end": load_average()}
        fields |= {"run_seconds": round(time.perf_counter() - begun, 3)} | _measured(run, settings.protocol.windows)
        fields |= compared(fields, rows)
        if audited:
            fields["audit"] = _audit(settings, prompts.of_round(0), run, sampling)
        settings.report(f"{what}: {run.ms_per_token:.3f} ms/token")
        emit(fields)
        rows[contender] = fields


def _labels(settings: Settings, contender: str) -> Row:
    if contender == TRANSFORMERS:
        assert settings.other is not None
        limit = settings.protocol.transformers_tokens
        return {
            "implementation": TRANSFORMERS,
            "mode": "plain",
            "schedule": None,
            "node_budget": None,
            "torch_threads": settings.other.threads,
            "most_tokens": limit,
        }
    return labels_of(speculation_of(contender, settings.node_budget, settings.draft_cache))


def _run(settings: Settings, contender: str, prompt: list[int], sampling: SamplingConfig, tokens: int) -> Run:
    if contender != TRANSFORMERS:
        speculation = speculation_of(contender, settings.node_budget, settings.draft_cache)
        return run_ours(settings.model, prompt, sampling, speculation, tokens)
    assert settings.other is not None
    # One more than is timed: the first token comes with prefill.
    return settings.other.run(prompt, sampling, min(tokens, settings.protocol.transformers_tokens + 1), lookup=False)


def _measured(run: Run, windows: tuple[int, int]) -> Row:
    """The fields that a run alone gives."""
    records = run.records
    assert records is not None
    fine, coarse = windows
    fields: dict[str, Any] = measures(Results({"": [run]}, {"": 0.0}), "")
    if not run.schedule_trace:
        return fields | {"latency": by_window(records, fine), "latency_coarse": by_window(records, coarse)}
    counted = stats.acceptance(records)
    accepted = counted["accepted_tokens"]
    return (
        fields
        | counted
        | {
            "ngram_share": counted["ngram_accepted_tokens"] / accepted if accepted else None,
            "distinct_n": stats.distinct_n(records.token_ids),
            "latency": by_window(records, fine),
            "latency_coarse": by_window(records, coarse),
            "text_digests": digests(run.token_ids, fine),
            "schedule_trace": run.schedule_trace,
        }
    )


def compared(row: Row, others: dict[str, Row]) -> Row:
    """The fields that set a row against plain decoding and transformers of the same text, where `others` has them.

    Speeds are over the windows that both have, `*_tokens` of them; sampled texts of transformers draw from another
    generator, so that it is no one's text.
    """
    fields: Row = {}
    for name in (PLAIN, BASELINE):
        other = others.get(name)
        if other is None:
            continue
        speed = speed_over_equal_windows(row["latency"], other["latency"])
        if speed is not None:
            tokens, ratio = speed
            fields[f"speed_vs_{name}"] = {"median": ratio, "min": ratio, "max": ratio}
            fields[f"speed_vs_{name}_tokens"] = tokens
    plain = others.get(PLAIN)
    if plain is not None and "text_digests" in row:
        fields["speed_vs_autoregressive_coarse"] = [
            None if mine["tokens"] != theirs["tokens"] else round(theirs["ms_per_token"] / mine["ms_per_token"], 4)
            for mine, theirs in zip(row["latency_coarse"], plain["latency_coarse"], strict=True)
        ]
        fields["leading_tokens_equal_to_autoregressive"] = leading_equal(
            row["text_digests"], plain["text_digests"], row["window_tokens"][0], row["new_tokens"]
        )
    return fields


def _audit(settings: Settings, prompt: list[int], run: Run, sampling: SamplingConfig) -> Row:
    begun = time.perf_counter()
    found = audit(settings.model, Request(prompt, sampling, len(run.token_ids)), run.token_ids)
    return asdict(found) | {"seconds": round(time.perf_counter() - begun, 3)}
