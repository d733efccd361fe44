"""A text cut into windows of equally many tokens: time and tokens per iteration in each, and what two texts share."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from tokenswift_jax.token_log import PREFILL_OFFSET, TokenLog

Window = dict[str, Any]
_DIGITS = 16  # of a digest: 64 bits


def by_window(records: TokenLog, size: int) -> list[Window]:
    """Windows of `size` tokens after prefill's, the last one shorter.

    Each has `tokens`, `ms_per_token` and `tokens_per_iteration` (tokens over the iterations that began in it; None
    where none did).
    """
    decoded = records.offsets != PREFILL_OFFSET
    seconds, starts = records.seconds[decoded], records.offsets[decoded] == 0
    windows = []
    for begin in range(0, len(seconds), size):
        part = slice(begin, begin + size)
        tokens, iterations = len(seconds[part]), int(starts[part].sum())
        windows.append(
            {
                "tokens": tokens,
                "ms_per_token": _rounded(1e3 * float(seconds[part].mean())),
                "tokens_per_iteration": _rounded(tokens / iterations) if iterations else None,
            }
        )
    return windows


def speed_over_equal_windows(own: list[Window], other: list[Window]) -> tuple[int, float] | None:
    """Over how many tokens from the first both were measured, and how many times faster `own` was; None without any."""
    tokens, times = 0, [0.0, 0.0]
    for mine, theirs in zip(own, other, strict=False):
        if mine["tokens"] != theirs["tokens"]:
            break
        tokens += mine["tokens"]
        times = [times[0] + mine["tokens"] * mine["ms_per_token"], times[1] + mine["tokens"] * theirs["ms_per_token"]]
    return (tokens, _rounded(times[1] / times[0])) if tokens else None


def digests(token_ids: list[int], size: int) -> list[str]:
    """Of every `size` tokens a digest of the whole text up to their end; the last one is of the whole text."""
    hashed, found = hashlib.sha256(), []
    for begin in range(0, len(token_ids), size):
        hashed.update(np.asarray(token_ids[begin : begin + size], "<i4").tobytes())
        found.append(hashed.hexdigest()[:_DIGITS])
    return found


def leading_equal(own: list[str], other: list[str], size: int, tokens: int) -> int:
    """Leading tokens that two texts of `tokens` tokens share, by their digests: all, or whole windows of `size`."""
    same = 0
    while same < min(len(own), len(other)) and own[same] == other[same]:
        same += 1
    return min(same * size, tokens)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
