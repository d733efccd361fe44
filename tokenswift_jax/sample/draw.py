"""Tokens from scores: the draw, which is the highest score plus noise, and the best candidates of a draft."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.vocabulary import best, highest, is_shared


def draw(scores: jax.Array, noise: jax.Array | None) -> jax.Array:
    """The token of every row: the highest score + noise, ties to the lowest id; [..., vocab] -> [...] int32."""
    return draw_and_score(scores, noise)[0]


def draw_and_score(scores: jax.Array, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The draw and its score + noise, [...]; the score shows at no further cost that a row has no draw.

    It is NaN for a row that contains a NaN, inf for a row with an infinite logit, and -inf for a row in which no token
    may be drawn; the token is then meaningless.
    """
    perturbed = scores if noise is None else scores + noise.astype(scores.dtype)
    if is_shared(perturbed.shape[-1]):
        return highest(perturbed, _search)
    return _search(perturbed)


def _search(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.platform_dependent(scores, cpu=_highest_in_two_reductions, default=_highest)


def _highest(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The draw and its score in one reduction.

    With two reductions, XLA could round the operations that it fuses into each differently, and no score would equal
    the maximum.
    """

    def better(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (score, token), (rival, its_token) = one, other
        higher = (score > rival) | (score != score)
        first = (score == rival) & (token < its_token)
        return jnp.where(higher, score, rival), jnp.where(higher | first, token, its_token)

    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    lowest = jnp.asarray(-jnp.inf, scores.dtype), jnp.int32(0)
    score, token = jax.lax.reduce((scores, ids), lowest, better, (scores.ndim - 1,))
    return token, score


def _highest_in_two_reductions(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum, then the lowest id that reaches it.

    On CPU XLA does not vectorise argmax, which is 3 to 6 times slower than these two reductions.
    """
    vocab = scores.shape[-1]
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    token = jnp.min(jnp.where(scores == highest, ids, vocab), axis=-1)
    return jnp.minimum(token, vocab - 1), highest[..., 0]  # no score equals a NaN maximum


def top_candidates(scores: jax.Array, noise: jax.Array | None, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best draft tokens of every row by score + noise, ties to the lowest id, and the numbers that rank them.

    Args:
      scores: [..., vocab], from `process`.
      noise: [..., vocab] float32 at the guessed position, or None when greedy.
      k: static.

    Returns:
      tokens [..., k] int32, and the log softmax of score + noise, [..., k] float32, which ranks nodes; -inf for
      filtered tokens. The target's draw adds the same noise, so score + noise says how likely a token is to be the
      draw. Ranking by the plain probability gave 8% fewer tokens per iteration at temperature 1 and small budgets.
    """
    perturbed = scores if noise is None else scores + noise.astype(scores.dtype)
    if is_shared(perturbed.shape[-1]):
        few, tokens, total = best(perturbed, k)
        return tokens, (few - total).astype(jnp.float32)
    # Without the barriers, XLA pushes slices into top-k and sorts the whole vocabulary. Each result has its own barrier
    # because one for both would take top-k's tuple, which XLA's partitioner for meshes cannot read.
    few, tokens = map(jax.lax.optimization_barrier, jax.lax.top_k(replicate(perturbed), k))
    log_probs = few - jax.nn.logsumexp(perturbed, axis=-1, keepdims=True)
    return tokens.astype(jnp.int32), log_probs.astype(jnp.float32)
