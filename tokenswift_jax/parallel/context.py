"""Results of the devices that share a cache's length, merged: each has computed over its own slots alone."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tokenswift_jax.parallel.gathered import gathered
from tokenswift_jax.parallel.mesh_spec import CONTEXT


def this_device() -> jax.Array:
    """The index along `context` of the device that computes, int32 []; inside an island, as all functions here."""
    return lax.axis_index(CONTEXT).astype(jnp.int32)


def attention(mixed: jax.Array, lse: jax.Array) -> jax.Array:
    """The attention over all devices' slots, [batch, rows, query_heads, head_dim] in the dtype of `mixed`.

    Every device adds up the same numbers in the same order, in the dtype of `lse`.

    Args:
      mixed: the result of a device over its own slots; meaningless where its `lse` is -inf.
      lse: [batch, rows, query_heads], float32 or wider, the logarithm of its softmax's denominator; -inf without slots.
    """
    given = jnp.concatenate([mixed.astype(lse.dtype), lse[..., None]], axis=-1)
    every = lax.all_gather(given, CONTEXT)
    parts, lses = every[..., :-1], every[..., -1:]
    weights = jnp.exp(lses - lses.max(axis=0, keepdims=True))
    # Without this mask, a device without slots spoils every row, since 0 * NaN is NaN.
    weighted = jnp.where(lses == -jnp.inf, jnp.zeros((), lse.dtype), weights * parts)
    return (reduce(add, weighted) / reduce(add, weights)).astype(mixed.dtype)


def best(scores: jax.Array, numbers: jax.Array, count: int) -> jax.Array:
    """The `count` best of all devices' candidates, int32 [..., count], best first; ties go to the lowest number, as on
    one device.

    Args:
      scores: a device's candidates [..., n]; -inf where it has too few.
      numbers: int32 [..., n], -1 there.
    """
    scores, numbers = gathered(scores, numbers, CONTEXT)
    numbers, scores = lax.sort((numbers, scores), num_keys=1)
    _, places = lax.top_k(scores, min(count, scores.shape[-1]))
    found = jnp.take_along_axis(numbers, places, axis=-1)
    short = count - found.shape[-1]
    return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, short)], constant_values=-1)


def owned(values: jax.Array, mine: jax.Array, axis: str | tuple[str, ...] = CONTEXT) -> jax.Array:
    """Gives every device along an axis, or along several, all values.

    Each device has some of them: `mine` is bool, and true on one device a value; the others add zero.
    """
    narrow = values.dtype.itemsize == 1
    # Collectives of GPUs add no float8.
    given: Any = lax.bitcast_convert_type(values, jnp.uint8) if narrow else values
    total = lax.psum(jnp.where(mine, given, jnp.zeros((), given.dtype)), axis)
    return lax.bitcast_convert_type(total, values.dtype) if narrow else total
