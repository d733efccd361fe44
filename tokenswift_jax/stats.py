"""The statistics of a generation, recomputed from the records of its tokens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tokenswift_jax.engine.prompt_stream import PromptStream
from tokenswift_jax.token_log import NGRAM, PREFILL_OFFSET, TokenLog, TokenLogprob

LATENCY_WINDOW = 512  # tokens
# A command generates one text, and an error ends it; the closing report says why a plan ran, and how stages worked.
NOT_IN_JSON = ("text", "audit_failed", "error", "plan_reason", "prefill_stream", "records")


@dataclass(frozen=True)
class GenerationResult:
    """One row's text with its statistics; `to_json` returns them in the form of the statistics file.

    Attributes:
      text: the generated text, without the prompt; it ends before a stop string; "" without a tokenizer.
      sequence: number of the random sequence: `SamplingConfig.sequence` plus the index in the batch.
      token_ids: the emitted token ids, with the token that completes a stop string and with an EOS.
      finish_reason: "length", "eos", "stop", "repetition", "interrupted" or, in a batch, "error".
      iterations: target passes after prefill; generated_tokens = 1 + accepted_tokens + iterations.
      draft_depth: sum over iterations of the tree depth offered.
      ngram_accepted_tokens: accepted tokens that only the n-gram table proposed.
      acceptance_rate: accepted_tokens / draft_depth.
      mean_accepted_length: tokens per iteration, accepted_tokens / iterations + 1.
      accepted_per_position: entry d counts the iterations that accepted a draft at depth d + 1.
      schedule_trace: the modes, schedules and node budgets that ran, each with the first token of this text from it.
      plan_reason: why the newest plan ran; None for a mode that names its plan.
      records: a record per token: its source, its place in its iteration, its time.
      prefill_stream: on a mesh with stages, the chunks in which the prompts went through them; None without stages.
      compile_seconds, prefill_seconds: of this process; a resumed run does not add those of earlier ones.
      decode_seconds: without compilation and prefill; a resumed run includes the time that its journal recorded.
      tokens_per_second: (generated_tokens - 1) / decode_seconds.
      latency: one entry per LATENCY_WINDOW tokens after the first: the number of tokens and their mean time.
      distinct_n: distinct n-grams of token ids / all of them, by n.
      audit: positions replayed, mismatches, largest margin; None when no audit was asked for.
      logprobs: one `TokenLogprob` per token where they were asked for; else None.
      error: message of the error that ended the row where finish_reason is "error".
      audit_failed: whether the audit found more than near-ties of the arithmetic.
    """

    text: str
    model: str
    mode: str
    seed: int
    sequence: int
    device: str
    dtype: str
    versions: dict[str, str]
    prompt_tokens: int
    generated_tokens: int
    token_ids: list[int]
    finish_reason: str
    iterations: int
    draft_depth: int
    accepted_tokens: int
    ngram_accepted_tokens: int
    acceptance_rate: float
    mean_accepted_length: float
    accepted_per_position: list[int]
    schedule_trace: list[dict[str, Any]]
    compile_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens_per_second: float
    latency: list[dict[str, float]]
    distinct_n: dict[str, float]
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None
    audit: dict[str, float] | None = None
    audit_failed: bool = False
    plan_reason: str | None = None
    prefill_stream: PromptStream | None = None
    records: TokenLog | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the statistics file, in their order."""
        fields = {name: value for name, value in asdict(self).items() if name not in NOT_IN_JSON}
        return fields if self.logprobs is not None else {n: v for n, v in fields.items() if n != "logprobs"}

    def to_json(self) -> str:
        """`to_dict` as JSON text, one line."""
        return json.dumps(self.to_dict(), allow_nan=False)


def acceptance(records: TokenLog) -> dict[str, Any]:
    """Counters of drafting over the kept tokens.

    An iteration emits its accepted drafts and one more token. Its last kept token counts as that one, with any source:
    an iteration cut at a stop string, an EOS or the cap has accepted the tokens before its last one.
    """
    count = len(records)
    opens = records.offsets == 0
    # A resumed run may take one more token from a prefill; it counts as an iteration that offered nothing.
    opens[1:] |= records.offsets[1:] == PREFILL_OFFSET
    starts = np.flatnonzero(opens)
    lengths = np.diff(np.append(starts, count)) - 1
    depths = np.where(records.offsets[starts] == 0, records.offered[starts], 0)
    accepted, depth = int(lengths.sum()), int(depths.sum())
    last = np.zeros(count, np.bool_)
    last[np.append(starts, count)[1:] - 1] = True
    return {
        "iterations": len(starts),
        "draft_depth": depth,
        "accepted_tokens": accepted,
        "ngram_accepted_tokens": int(np.sum((records.sources == NGRAM) & ~last)),
        "acceptance_rate": accepted / depth if depth else 0.0,
        "mean_accepted_length": accepted / len(starts) + 1 if len(starts) else 1.0,
        "accepted_per_position": [int(np.sum(lengths > position)) for position in range(int(depths.max(initial=0)))],
    }


def timing(records: TokenLog) -> dict[str, Any]:
    """Decode time, rate, and the mean time per token for every LATENCY_WINDOW tokens after the first."""
    decoded = records.seconds[1:]
    total = float(records.seconds.sum())
    windows = [decoded[start : start + LATENCY_WINDOW] for start in range(0, len(decoded), LATENCY_WINDOW)]
    return {
        "decode_seconds": total,
        "tokens_per_second": len(decoded) / total if total else 0.0,
        "latency": [{"tokens": len(window), "ms_per_token": 1e3 * float(window.mean())} for window in windows],
    }


def distinct_n(token_ids: np.ndarray, largest: int = 4) -> dict[str, float]:
    """Distinct n-grams / all n-grams for n = 1..largest; 0.0 where there are none."""
    shares, codes = {}, np.asarray(token_ids, np.int64)  # code i stands for the n-gram that begins at token i
    for n in range(1, largest + 1):
        distinct, which = np.unique(codes, return_inverse=True)
        shares[str(n)] = len(distinct) / len(codes) if len(codes) else 0.0
        codes = which[:-1] * (int(token_ids.max(initial=0)) + 1) + token_ids[n:]
    return shares
