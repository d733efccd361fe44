"""Scores and ids of all devices along axes, by one collective for both."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def gathered(scores: jax.Array, ids: jax.Array, axes: str | tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Every device's scores and ids int32 [..., n], as [..., devices * n] on all devices; inside an island."""
    bits = lax.bitcast_convert_type(scores, jnp.int32)
    words = jnp.concatenate([bits.reshape(*ids.shape[:-1], -1), ids], axis=-1)
    every = apart(lax.all_gather(words, axes, axis=words.ndim - 1, tiled=True), words.shape[-1])
    count = ids.shape[-1]
    bits = every[..., :-count]
    if scores.dtype.itemsize == 8:
        bits = bits.reshape(*bits.shape[:-1], count, 2)
    flat = (*ids.shape[:-1], -1)
    return lax.bitcast_convert_type(bits, scores.dtype).reshape(flat), every[..., -count:].reshape(flat)


def apart(values: jax.Array, count: int) -> jax.Array:
    """[..., devices * count] as [..., devices, count]."""
    return values.reshape(*values.shape[:-1], -1, count)
