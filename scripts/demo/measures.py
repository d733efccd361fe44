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
    text = np.array([_END, *ids])
    pieces = []  # start, first and last scored target
    scored = 0
    while scored < len(text) - 1:
        end = min(scored + (stride if scored else length), len(text) - 1)
        pieces.append((max(0, end - length), scored, end))
        scored = end
    total = 0.0
    for first in range(0, len(pieces), _WINDOWS):
        group = pieces[first : first + _WINDOWS]
        missing = min(_WINDOWS, len(pieces)) - len(group)
        windows = [text[start:end].tolist() for start, _, end in [*group, *[group[0]] * missing]]  # one shape for all
        logits = ts.score(model, windows)
        for (start, low, high), rows in zip(group, logits, strict=False):
            total += float(losses(rows[low - start : high - start], text[low + 1 : high + 1]).sum())
    return total / math.log(2) / characters


def losses(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Cross entropy of tokens [n] under logits [n, vocab], in nats."""
    wide = logits.astype(np.float64)
    peak = wide.max(axis=-1)
    total = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=-1))
    return total - wide[np.arange(len(tokens)), tokens]


def loss_by_position(model: ts.Model, ids: Sequence[int], length: int, bands: int) -> list[float]:
    """Nats a token in `bands` equal stretches of one window of `length` tokens from the text's beginning."""
    window = np.array(ids[: length + 1])
    logits = ts.score(model, [window[:-1].tolist()])[0]
    return [round(float(part.mean()), 4) for part in np.array_split(losses(logits, window[1:]), bands)]


def head_hits(model: ts.Model, books: Sequence[Sequence[int]], length: int) -> dict[str, list[list[float]]]:
    """How often a head's best 1, 2, 3 guesses hold the right token: [heads][ranks], over windows of `length`.

    "model": right is the backbone's own best token where the guess falls (what greedy decoding accepts);
    "text": right is the book's token.
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
        sampling = ts.SamplingConfig(**fields)
        for schedule in SCHEDULES:
            speculation = ts.SpeculationConfig(mode="tokenswift", schedule=schedule, draft_cache=DRAFT_CACHE)
            results = [
                ts.generate(model, list(prompt), sampling, speculation, max_new_tokens=new_tokens, ignore_eos=True)
                for prompt in prompts
            ]
            accepted, iterations = (sum(getattr(r, n) for r in results) for n in ("accepted_tokens", "iterations"))
            found.setdefault(name, {})[schedule] = round(accepted / iterations + 1, 3)
    return found


def write_on(model: ts.Model, ids: Sequence[int], count: int) -> str:
    """`count` tokens after `ids`, as the card shows them: temperature 1, min-p 0.1, penalty 1.1, seed 0."""
    sampling = ts.SamplingConfig(temperature=1.0, min_p=0.1, repetition_penalty=1.1)
    plain = ts.SpeculationConfig(mode="autoregressive")
    return ts.generate(model, list(ids), sampling, plain, max_new_tokens=count, ignore_eos=True).text
