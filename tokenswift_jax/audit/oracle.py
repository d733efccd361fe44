"""The definition of a draw in plain NumPy, for the audit: it shares no code with the rule that it checks.

Every quantity follows from the request, the text and the raw logits, one position at a time, in float64. The answer is
no only where it is one by more than the rounding of float32 explains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax.request import Request

# Relative to the largest score: a score is a few float32 operations on a logit, each with an error of 2^-24.
_ROUNDING = 1e-5
# Of probabilities: float32 sums over a vocabulary of 2^18 tokens, summed in any order.
_MASS = 1e-3


@dataclass(frozen=True)
class _Row:
    """The scores of one position, -inf for forbidden tokens, before any filter."""

    scores: np.ndarray
    request: Request

    @property
    def slack(self) -> float:
        """The rounding of the row's scores."""
        finite = self.scores[np.isfinite(self.scores)]
        return _ROUNDING * max(1.0, float(np.abs(finite).max(initial=0.0)))


def noise_of(request: Request, positions: Sequence[int], vocab: int) -> np.ndarray | None:
    """The noise of the positions by jax's public functions, [positions, vocab] float32; None for a greedy request."""
    if not request.sampling.temperature:
        return None
    root = jax.random.key(np.uint32(request.sampling.seed), impl="threefry2x32")
    row = jax.random.fold_in(root, np.uint32(request.sampling.sequence))

    def one(position: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(row, position), (vocab,), jnp.float32, mode="low")

    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(positions, jnp.int32)))


def penalty_windows(text: Sequence[int], positions: Sequence[int], request: Request) -> Iterator[np.ndarray]:
    """The distinct tokens in the penalty window before each of the ascending `positions` of a text."""
    newest: dict[int, int] = {}
    window, known = request.sampling.penalty_window, 0
    for position in positions:
        newest.update((token, at) for at, token in enumerate(text[known:position], known))
        known = position
        first = 0 if window is None else position - window
        yield np.asarray([token for token, at in newest.items() if at >= first], np.int64)


def may_be_drawn(
    token: int, logits: np.ndarray, noise: np.ndarray | None, generated: int, recent: np.ndarray, request: Request
) -> bool:
    """Whether `token` is the draw from logits [vocab].

    Args:
      token: the token in question.
      logits: the target's logits after the text.
      noise: [vocab], `noise_of` the position; None when greedy.
      generated: number of new tokens before the draw.
      recent: the distinct tokens in its penalty window, `penalty_windows`.
      request: the settings.
    """
    sampling, logits = request.sampling, logits.astype(np.float64)
    forbidden = set(sampling.suppress_tokens)
    if generated < request.min_new_tokens:
        forbidden |= set(request.eos_token_ids)
    allowed = np.ones(len(logits), bool)
    allowed[[one for one in forbidden if one < len(logits)]] = False
    if not allowed[token] or np.isnan(logits[allowed]).any() or not np.isfinite(logits[allowed].max()):
        return False
    scores = np.where(allowed, logits, -np.inf)
    if sampling.repetition_penalty != 1:
        old, penalty = scores[recent], sampling.repetition_penalty
        scores[recent] = np.where(old < 0, old * penalty, old / penalty)
    if sampling.temperature:
        scores = scores / sampling.temperature
    row = _Row(scores, request)
    if noise is None:
        return bool(scores[token] >= scores.max() - row.slack)
    if scores[token] == -np.inf or not _is_kept(token, row, lenient=True):
        return False
    perturbed = scores + noise.astype(np.float64)
    rivals = np.flatnonzero(perturbed > perturbed[token] + row.slack)
    # Filters keep the highest scores: if they drop the highest of the rivals, they drop them all.
    return not len(rivals) or not _is_kept(int(rivals[np.argmax(scores[rivals])]), row, lenient=False)


def _is_kept(token: int, row: _Row, *, lenient: bool) -> bool:
    """Whether all filters keep a token; rounding decides for it if `lenient`, else against it."""
    sampling, scores, sign = row.request.sampling, row.scores, 1 if lenient else -1
    own, slack, mass = scores[token], sign * row.slack, sign * _MASS
    higher = scores > own + slack
    higher[token] = False
    above = int(higher.sum())
    if above < sampling.min_tokens_to_keep:
        return True
    kept = scores > -np.inf
    if sampling.top_k is not None:
        count = max(sampling.top_k, sampling.min_tokens_to_keep)
        if above >= count:
            return False
        if count < len(scores):
            kept &= scores >= np.partition(scores, -count)[-count]
    highest = scores.max()
    weights = np.where(kept, np.exp(scores - highest), 0.0)
    if sampling.top_p is not None and sampling.top_p < 1:
        if weights[higher].sum() / weights.sum() >= sampling.top_p + mass:
            return False
        if sampling.eta_cutoff is not None:
            order = np.argsort(-scores, kind="stable")
            before = np.cumsum(weights[order]) - weights[order]
            inside = scores[order][before < sampling.top_p * weights.sum()].min()
            weights = np.where(scores >= inside, weights, 0.0)
    if sampling.min_p:
        if own < highest + np.log(sampling.min_p) - slack:
            return False
        weights = np.where(scores >= highest + np.log(sampling.min_p), weights, 0.0)
    if sampling.eta_cutoff is not None:
        shares = weights / weights.sum()
        entropy = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
        least = min(sampling.eta_cutoff, np.sqrt(sampling.eta_cutoff) * np.exp(-entropy))
        return bool(np.exp(own - highest) / weights.sum() >= least * (1 - mass))
    return True
