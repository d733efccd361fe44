"""The paper's protocol: long texts after prefixes of books, every contender on the same text (paper section 4)."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict

import numpy as np

import tokenswift_jax as ts
from benchmarking.rows import PLAIN, TRANSFORMERS, Row, RowFile, labels_of, measures, setting
from benchmarking.runs import Results, Run, rounded, run_ours
from benchmarking.settings import Settings, speculation_of
from benchmarking.texts import Prompts
from tokenswift_jax.hardware.environment import load_average

_DIGITS = 16  # of a digest: 64 bits
_STATISTICS = ("iterations", "draft_depth", "accepted_tokens", "ngram_accepted_tokens", "acceptance_rate")
_STATISTICS += ("mean_accepted_length", "accepted_per_position", "distinct_n", "schedule_trace")


def protocol(settings: Settings, emit: RowFile) -> None:
    """One row a contender, written when it is done; a row that the file has is not measured again."""
    for name, sampling in settings.samplings.items():
        for prefix in settings.asked.protocol_prefixes:
            for passage in range(settings.asked.passages):
                prompts = settings.prompts.only(passage).first(prefix)
                for tokens in settings.asked.tokens:
                    _measure(settings, emit, prompts, name, sampling, tokens)


def _measure(
    settings: Settings, emit: RowFile, prompts: Prompts, name: str, sampling: ts.SamplingConfig, tokens: int
) -> None:
    """The rows of one text."""
    asked, prompt = settings.asked, prompts.of_round(0)
    text = setting("protocol", prompts, sampling.temperature, sampling.seed)
    text |= {"sampling": name, "sampling_config": asdict(sampling), "asked_tokens": tokens}
    text |= {"window_tokens": asked.windows}
    rows: dict[str, Row] = {}
    for contender in settings.contenders:
        if contender == TRANSFORMERS and settings.other is None:
            continue
        fields = text | {"contender": contender} | _labels(settings, contender)
        what = f"protocol: {contender}, {tokens:,} tokens after {len(prompt):,}, {name}"
        found = emit.find(fields)
        audited = asked.audit and contender.startswith("tokenswift")
        if found is not None and (found.get("audit") is not None or not audited):
            settings.report(f"{what}: found in the file")
            emit.rows.append(found)
            rows[contender] = found
            continue
        settings.report(what)
        load, begun = load_average(), time.perf_counter()
        if contender == TRANSFORMERS:
            assert settings.other is not None
            # One more than is timed: the first token comes with prefill.
            run = settings.other.run(prompt, sampling, min(tokens, asked.transformers_tokens + 1), lookup=False)
        else:
            speculation = speculation_of(contender, asked.node_budget, asked.draft_cache)
            run = run_ours(settings.model, prompt, sampling, speculation, tokens, audit=audited)
        fields |= {"load_average_at_begin": load, "load_average_at_end": load_average()}
        # With compilation and the audit.
        fields |= {"run_seconds": round(time.perf_counter() - begun, 3)} | _measured(run, asked.windows)
        fields |= compared(fields, rows)
        if run.result is not None and run.result.audit is not None:
            fields["audit"] = run.result.audit | {"failed": run.result.audit_failed}
        settings.report(f"{what}: {run.ms_per_token:.3f} ms/token")
        emit(fields)
        rows[contender] = fields


def _labels(settings: Settings, contender: str) -> Row:
    if contender != TRANSFORMERS:
        return labels_of(speculation_of(contender, settings.asked.node_budget, settings.asked.draft_cache))
    assert settings.other is not None
    return settings.other.labels(lookup=False) | {"most_tokens": settings.asked.transformers_tokens}


def _measured(run: Run, windows: tuple[int, int]) -> Row:
    """The fields that a run alone gives; drafting's where this package ran."""
    records, (fine, coarse) = run.records, windows
    assert records is not None
    fields: Row = measures(Results({"": [run]}, {"": 0.0}), "")
    fields |= {"latency": records.by_window(fine), "latency_coarse": records.by_window(coarse)}
    if run.result is not None:
        fields |= drafting(run.result) | {"text_digests": digests(run.token_ids, fine)}
    return fields


def drafting(result: ts.GenerationResult) -> Row:
    """Acceptance, Distinct-n, the plans that ran, the n-grams' share of the accepted tokens (None without any)."""
    accepted = result.accepted_tokens
    share = result.ngram_accepted_tokens / accepted if accepted else None
    return {name: getattr(result, name) for name in _STATISTICS} | {"ngram_share": share}


def compared(row: Row, others: dict[str, Row]) -> Row:
    """The fields that compare a row with plain decoding and transformers on the same text, where `others` has them.

    Speeds are over the windows that both have, `*_tokens` of them; a sampled text of transformers draws from another
    generator and equals no other.
    """
    fields: Row = {}
    for name in (PLAIN, TRANSFORMERS):
        speed = speed_over_equal_windows(row["latency"], others[name]["latency"]) if name in others else None
        if speed is not None:
            fields[f"speed_vs_{name}"] = dict.fromkeys(("median", "min", "max"), speed[1])
            fields[f"speed_vs_{name}_tokens"] = speed[0]
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


def speed_over_equal_windows(own: list[Row], other: list[Row]) -> tuple[int, float] | None:
    """Over how many tokens from the first both were measured, and how many times faster `own` was; None without any."""
    tokens, times = 0, [0.0, 0.0]
    for mine, theirs in zip(own, other, strict=False):
        if mine["tokens"] != theirs["tokens"]:
            break
        tokens += mine["tokens"]
        times = [times[0] + mine["tokens"] * mine["ms_per_token"], times[1] + mine["tokens"] * theirs["ms_per_token"]]
    return (tokens, rounded(times[1] / times[0])) if tokens else None


def digests(token_ids: list[int], size: int) -> list[str]:
    """A digest after every `size` tokens, of the text up to there; the last one is of the whole text."""
    hashed, found = hashlib.sha256(), []
    for begin in range(0, len(token_ids), size):
        hashed.update(np.asarray(token_ids[begin : begin + size], "<i4").tobytes())
        found.append(hashed.hexdigest()[:_DIGITS])
    return found


def leading_equal(own: list[str], other: list[str], size: int, tokens: int) -> int:
    """Leading tokens that two texts of `tokens` tokens share, by their digests: all, or whole windows of `size`."""
    pairs = enumerate(zip(own, other, strict=False))
    same = next((index for index, (x, y) in pairs if x != y), min(len(own), len(other)))
    return min(same * size, tokens)
