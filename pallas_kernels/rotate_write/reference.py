"""The definition in plain jnp, row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.add_norm.reference import rms_norm
from pallas_kernels.rotate_write.heads import HeadNorms, RotatedHeads


def rotate_write(
    heads: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    layer: int | jax.Array,
    starts: jax.Array,
    norms: HeadNorms | None = None,
) -> RotatedHeads:
    """As `pallas_kernels.rotate_write`."""
    batch, rows, _, _, head_dim = heads.shape
    queries, own_keys, own_values = heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1, :]
    if norms is not None:
        queries = rms_norm(queries, norms.queries, norms.eps)
        own_keys = rms_norm(own_keys, norms.keys, norms.eps)
    queries, own_keys = (rotate(x, cos[:, :, None, None], sin[:, :, None, None]) for x in (queries, own_keys))
    own_keys = own_keys[..., 0, :]
    zero, layer = jnp.int32(0), jnp.asarray(layer, jnp.int32)

    def write(text: jax.Array, stacks: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at = layer, text, zero, lax.dynamic_index_in_dim(starts, text, keepdims=False), zero
        new = (lax.dynamic_slice_in_dim(x, text, 1).swapaxes(1, 2)[None] for x in (own_keys, own_values))
        return tuple(lax.dynamic_update_slice(stack, rows, at) for stack, rows in zip(stacks, new, strict=True))

    # A loop: the program must not grow with the batch.
    keys, values = lax.fori_loop(zero, jnp.int32(batch), write, (keys, values))
    return RotatedHeads(queries.reshape(batch, rows, -1, head_dim), own_keys, own_values, keys, values)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Pairs number i of a head with number i + head_dim / 2 (HF's order) and turns the pairs."""
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
