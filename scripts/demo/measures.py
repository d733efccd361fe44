"""Measures of a demo checkpoint: bits per character, loss by position, heads' hits, tokens per iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import tokenswift_jax as ts
from tokenswift_jax.training.accuracy import measure_accuracy

_WINDOWS = 4  # that are scored together
_END = 0  # the end mark opens a book, as in training
DRAFT_CACHE = 512
SCHEDULES = ("partial", "fused")
SAMPLINGS: dict[str, dict[str, Any]] = {
    "temperature 0": {"temperature": 0.0},
    "temperature 1, min-p 0.1, penalty 1.1": {"temperature": 1.0, "min_p": 0.1, "repetition_penalty": 1.1},
    "temperature 1": {"temperature": 1.0},
}


def bits_per_character(model: ts.Model, ids: Sequence[int], characters: int, length: int, stride: int) -> float:
    """Every token of a text scored once, in windows of `length` tokens that advance by `stride`.

    A token sees at least length - stride tokens before it, but for the first window's.
    """
    text = [_END, *ids]
    pieces, scored = [], 0  # start, first and last scored target
    while scored < len(text) - 1:
        end = min(scored + (stride if scored else length), len(text) - 1)
        pieces.append((max(0, end - length), scored, end))
        scored = end
    nats = 0.0
    for first in range(0, len(pieces), _WINDOWS):
        group = pieces[first : first + _WINDOWS]
        missing = min(_WINDOWS, len(pieces)) - len(group)  # one shape for all
        windows = [text[start : end + 1] for start, _, end in [*group, *[group[0]] * missing]]
        for (start, low, high), found in zip(group, ts.score_tokens(model, windows), strict=False):
            nats -= float(found.logprobs[low - start : high - start].astype(np.float64).sum())
    return nats / math.log(2) / characters


def head_hits(model: ts.Model, books: Sequence[Sequence[int]], length: int) -> dict[str, list[list[float]]]:
    """How often a head's best 1, 2, 3 guesses contain the right token: [heads][ranks], over windows of `length`.

    "model": the right token is the backbone's own best where the guess falls (greedy decoding accepts it); "text": it
    is the book's token.
    """
    windows = [ids[start : start + length] for ids in books for start in range(0, len(ids) - length + 1, length)]
    heads = measure_accuracy(model, np.array(windows, np.int32)).heads
    return {
        "model": [[round(share, 4) for share in head.model_top] for head in heads],
        "text": [[round(share, 4) for share in head.text_top] for head in heads],
    }


def tokens_per_iteration(
    model: ts.Model, prompts: Sequence[Sequence[int]], new_tokens: int
) -> dict[str, dict[str, float]]:
    """Tokens an iteration of `tokenswift` emits after the prompts, n-grams included: by sampling, then by schedule.

    The draft cache is smaller than the prompts, seed 0, the checkpoint's tree; the mean weighs iterations alike.
    """
    found: dict[str, dict[str, float]] = {}
    for name, fields in SAMPLINGS.items():
        for schedule in SCHEDULES:
            speculation = ts.SpeculationConfig(mode="tokenswift", schedule=schedule, draft_cache=DRAFT_CACHE)
            results = [
                ts.generate(
                    model,
                    list(prompt),
                    ts.SamplingConfig(**fields),
                    speculation,
                    max_new_tokens=new_tokens,
                    ignore_eos=True,
                )
                for prompt in prompts
            ]
            accepted, iterations = (sum(getattr(r, n) for r in results) for n in ("accepted_tokens", "iterations"))
            found.setdefault(name, {})[schedule] = round(accepted / iterations + 1, 3)
    return found
