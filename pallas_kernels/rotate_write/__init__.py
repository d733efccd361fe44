"""The heads of new rows, normalised and rotated, and their K/V in the cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import choose
from pallas_kernels.rotate_write import reference
from pallas_kernels.rotate_write.heads import HeadNorms, RotatedHeads

__all__ = ["HeadNorms", "RotatedHeads", "rotate_write"]


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
    """Rotates the queries and keys of rows, and writes their K/V to a cache in the model's dtype.

    On a GPU one kernel does both and writes to the cache that it is given; XLA would launch five.

    Args:
      heads: [batch, rows, kv_heads, group + 2, head_dim]: of each KV head its queries, its key and its value.
      cos, sin: [batch, rows, head_dim / 2], float32 or wider.
      keys, values: the stacked cache [layers, batch, kv_heads, capacity, head_dim].
      layer: the layer of the cache to write; an int or int32 [].
      starts: int32 [batch]; row i goes to slot starts + i. The caller keeps starts + rows within the capacity.
      norms: RMSNorms of queries and keys before the rotation (Qwen3); None for none.
    """
    # The kernel computes in float32 and holds half a head as one array, whose size must be a power of two.
    half = heads.shape[-1] // 2
    fits = heads.dtype != jnp.float64 and half & (half - 1) == 0 and half >= 16
    if choose("rotate_write", ("reference", "gpu") if fits else ("reference",)) == "gpu":
        # Without this late import, a process on CPU waits for the import of Pallas, which it never uses.
        from pallas_kernels.rotate_write import gpu

        return gpu.rotate_write(heads, cos, sin, keys, values, layer=layer, starts=starts, norms=norms)
    return reference.rotate_write(heads, cos, sin, keys, values, layer=layer, starts=starts, norms=norms)
