"""Scores over a vocabulary that devices share: each reads its own part, and one small merge follows.

No device ever has all scores. Ties go to the lowest id, as on one device: every device's candidates are in that
order, and the devices are in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from pallas_kernels.commit_text import reference
from tokenswift_jax.parallel.context import owned
from tokenswift_jax.parallel.gathered import apart, gathered
from tokenswift_jax.parallel.island import island
from tokenswift_jax.parallel.rules import shared_over, split_as


def is_shared(vocab: int) -> bool:
    """Whether the devices of the mesh in use share a vocabulary of this size."""
    return bool(shared_over("vocab", vocab))


def highest(
    scores: jax.Array, search: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """The id int32 [...] and the score [...] of the highest of scores [..., vocab].

    A NaN is higher than every number, as for `jnp.max`.

    Args:
      scores: as the devices share them.
      search: returns the same of one device's part.
    """
    vocab = scores.shape[-1]
    axes = shared_over("vocab", vocab)

    def own(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        token, score = search(part)
        scores, tokens = gathered(score[..., None], _global(token, part, axes)[..., None], axes)
        best = jnp.max(scores, axis=-1)
        first = jnp.min(jnp.where(scores == best[..., None], tokens, vocab - 1), axis=-1)
        return first, best

    return island(own, in_specs=(_split(scores, axes),), out_specs=(P(), P()))(scores)


def best(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k highest of scores [..., vocab], [..., k] in descending order, their ids int32 [..., k], and the logarithm
    of the sum of all exponentials, [..., 1]."""
    axes = shared_over("vocab", scores.shape[-1])

    def own(part: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        few, tokens = lax.top_k(part, min(k, part.shape[-1]))
        few, tokens = map(lax.optimization_barrier, (few, tokens))
        tokens = _global(tokens.astype(jnp.int32), part, axes)
        total = jax.nn.logsumexp(part, axis=-1, keepdims=True)
        given = jnp.concatenate([few, total], axis=-1)
        ids = jnp.concatenate([tokens, jnp.zeros(total.shape, jnp.int32)], axis=-1)
        scores, ids = (apart(values, given.shape[-1]) for values in gathered(given, ids, axes))
        found, places = lax.top_k(scores[..., :-1].reshape(*part.shape[:-1], -1), k)
        ids = jnp.take_along_axis(ids[..., :-1].reshape(*part.shape[:-1], -1), places, axis=-1)
        return found, ids, jax.nn.logsumexp(scores[..., -1], axis=-1, keepdims=True)

    return island(own, in_specs=(_split(scores, axes),), out_specs=(P(), P(), P()))(scores)


def scores_of(scores: jax.Array, tokens: jax.Array) -> jax.Array:
    """The scores [...] of tokens int32 [...] among scores [..., vocab]; a token outside the vocabulary has that of its
    nearest id."""
    vocab = scores.shape[-1]
    axes, tokens = shared_over("vocab", vocab), jnp.clip(tokens, 0, vocab - 1)
    if not axes:
        return jnp.take_along_axis(scores, tokens[..., None], axis=-1, mode="clip")[..., 0]

    def own(part: jax.Array, tokens: jax.Array) -> jax.Array:
        index = tokens - _first(part, axes)
        mine = (index >= 0) & (index < part.shape[-1])
        found = jnp.take_along_axis(part, index[..., None], axis=-1, mode="clip")[..., 0]
        return owned(found, mine, axes)

    return island(own, in_specs=(_split(scores, axes), P()), out_specs=P())(scores, tokens)


def best_blocks(scores: jax.Array, count: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The `count` blocks with the highest peaks of scores [..., vocab], [..., count * width], and these peaks,
    [..., count] in descending order.

    A block contains every (part / width)-th score of one device's part. All devices get the same result.
    """
    axes = shared_over("vocab", scores.shape[-1])

    def own(part: jax.Array) -> tuple[jax.Array, jax.Array]:
        blocks = strided_blocks(part, width)
        each = blocks.shape[-1]
        device = lax.axis_index(axes).astype(jnp.int32)
        peaks, places = lax.top_k(jnp.max(blocks, axis=-2), min(count, each))
        peaks, numbers = gathered(peaks, places.astype(jnp.int32) + device * each, axes)
        peaks, places = lax.top_k(peaks, count)
        index = jnp.take_along_axis(numbers, places, axis=-1) - device * each
        mine = (index >= 0) & (index < each)
        found = jnp.take_along_axis(blocks, index[..., None, :], axis=-1, mode="clip")
        return owned(found, mine[..., None, :], axes).reshape(*part.shape[:-1], -1), peaks

    return island(own, in_specs=(_split(scores, axes),), out_specs=(P(), P()))(scores)


def strided_blocks(scores: jax.Array, width: int) -> jax.Array:
    """Scores [..., n] as blocks [..., width, blocks]; a block contains every (n / width)-th score, and -inf past n."""
    missing = -scores.shape[-1] % width
    if missing:
        scores = jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, missing)], constant_values=-jnp.inf)
    return scores.reshape(*scores.shape[:-1], width, -1)


def of_ids(values: jax.Array, ids: jax.Array) -> jax.Array:
    """The values [..., n] of some ids int32 [n] among values [..., vocab]; devices share them as a vocabulary of n."""
    axes = shared_over("vocab", values.shape[-1])
    if not axes:
        return values[..., ids]

    def own(part: jax.Array, ids: jax.Array) -> jax.Array:
        index = ids - _first(part, axes)
        mine = (index >= 0) & (index < part.shape[-1])
        found = part[..., jnp.clip(index, 0, part.shape[-1] - 1)]
        return owned(found, mine, axes)

    every = island(own, in_specs=(_split(values, axes), P()), out_specs=P())(values, ids)
    return split_as(every, *["rows"] * (values.ndim - 1), "vocab")


def newest_positions(last: jax.Array, tokens: jax.Array, before: jax.Array, after: jax.Array, most: int) -> jax.Array:
    """`reference.newest_positions`; each device writes to its own part of the vocabulary.

    Without the island, XLA for GPUs and TPUs gathers all of `last` at every step (513 KB for Llama-3.1-8B).
    """
    axes = shared_over("vocab", last.shape[1])
    if not axes:
        return reference.newest_positions(last, tokens, before, after, most)

    def own(part: jax.Array, tokens: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        return reference.newest_positions(part, tokens, before, after, most, _first(part, axes))

    split = _split(last, axes)
    return island(own, in_specs=(split, P(), P(), P()), out_specs=split)(last, tokens, before, after)


def _split(scores: jax.Array, axes: tuple[str, ...]) -> P:
    return P(*[None] * (scores.ndim - 1), axes)


def _first(part: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The first id of this device's part [..., vocab / devices], int32 []."""
    return lax.axis_index(axes).astype(jnp.int32) * part.shape[-1]


def _global(tokens: jax.Array, part: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The ids of the vocabulary for the ids of one device's part."""
    return tokens + _first(part, axes)
