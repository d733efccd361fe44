"""Gumbel noise keyed by position: a draw has the same randomness in every mode, tree and batch slot."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.rules import shared_over
from tokenswift_jax.sample.threefry import threefry

_IMPLEMENTATION = "threefry2x32"


def row_keys(seeds: int | jax.Array, sequences: jax.Array) -> jax.Array:
    """The key of each row of a batch: fold_in(key(seed), sequence).

    Args:
      seeds: in [0, 2**32), one for all rows, or uint32 [batch].
      sequences: [batch] int32 or uint32, `SamplingConfig.sequence` plus the index in the batch; it does not depend on
        the row's slot.

    Returns:
      [batch, 2] uint32, raw key data: as ordinary arrays the keys pass through jit, loops and donation.
    """
    if isinstance(seeds, int):
        seeds = jnp.asarray(np.full(sequences.shape, seeds, np.uint32))
    return _row_keys(seeds, sequences)


@jax.jit
def _row_keys(seeds: jax.Array, sequences: jax.Array) -> jax.Array:
    def of_row(seed: jax.Array, sequence: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed, impl=_IMPLEMENTATION), sequence)

    return jax.random.key_data(jax.vmap(of_row)(seeds, sequences))


def gumbel_noise(keys: jax.Array, positions: jax.Array, vocab: int) -> jax.Array:
    """The noise of each position's draw: g_q = gumbel(fold_in(row key, q)).

    Args:
      keys: [batch, 2] uint32, from `row_keys`.
      positions: [batch, draws] int32, the position q of the token to be drawn.
      vocab: size of the vocabulary.

    Returns:
      [batch, draws, vocab] float32, finite; the same bits for a (row, position) in any batch and any number of draws.

    Raises:
      UserError: the process has switched partitionable threefry off; its bits define the text of a seed.
    """
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError("JAX_THREEFRY_PARTITIONABLE is off, which changes the text of every seed; unset it")

    # The devices that share the scores share the noise: each makes its own part.
    axes = shared_over("vocab", vocab)
    if axes:
        return _drawn(keys, positions, vocab, P(axes))
    return jax.lax.platform_dependent(
        keys, positions, cpu=partial(_unrolled, vocab=vocab), default=partial(_drawn, vocab=vocab, split=None)
    )


def _drawn(keys: jax.Array, positions: jax.Array, vocab: int, split: P | None) -> jax.Array:
    def one(key: jax.Array, position: jax.Array) -> jax.Array:
        wrapped = jax.random.wrap_key_data(key, impl=_IMPLEMENTATION)
        # The mode is explicit because a process can configure its default, and because "low" gives the same bits in
        # every supported jax (0.12 changed those of "high").
        position_key = jax.random.fold_in(wrapped, position)
        return jax.random.gumbel(position_key, (vocab,), jnp.float32, mode="low", out_sharding=split)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(keys, positions)


def _unrolled(keys: jax.Array, positions: jax.Array, vocab: int) -> jax.Array:
    """The numbers of `_drawn`, by the same formulas."""
    first, second = threefry(keys[:, :1], keys[:, 1:], positions.astype(jnp.uint32))
    ids = jnp.arange(vocab, dtype=jnp.uint32)[None, None]
    left, right = threefry(first[..., None], second[..., None], ids)
    bits = left ^ right
    least = np.finfo(np.float32).tiny
    below_two = jax.lax.bitcast_convert_type(bits >> np.uint32(9) | np.uint32(0x3F800000), jnp.float32)
    uniform = jnp.maximum(least, (below_two - np.float32(1)) * (np.float32(1) - least) + least)
    # Without the barrier, XLA computes the noise in the reductions of the draw, twice and one number at a time.
    return jax.lax.optimization_barrier(-jnp.log(-jnp.log(uniform)))
