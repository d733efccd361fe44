"""The stacked cache as one long sequence of slots, in which every row of every head sees one range.

This view lets a library's kernel read any layer of the cache in place: the kernel sees all KV heads as one, and the
mask that it is given selects the slots of a layer and a head.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def flat_cache_view(stack: jax.Array) -> jax.Array:
    """A stacked cache [layers, batch, kv_heads, capacity, head_dim] as [slots of all, head_dim]; a view."""
    return stack.reshape(-1, stack.shape[-1])


def numbered(stack: jax.Array) -> bool:
    """Whether int32 can number the slots of all layers; not for 80 layers of 8 heads and 4 x 1,048,576 positions."""
    return math.prod(stack.shape[:4]) < 2**31


def layer_begins(stack: jax.Array, layer: int | jax.Array) -> int | jax.Array:
    """The first slot of a layer in `flat_cache_view`."""
    return layer * math.prod(stack.shape[1:4])


def kv_ranges(stack: jax.Array, lengths: jax.Array, rows: int, window: int | None) -> tuple[jax.Array, jax.Array]:
    """First slot that each row sees of a layer, and the one past the last, int32 [batch, kv_heads, rows] each.

    They count from `layer_begins`, so XLA compiles the arithmetic on them once for all layers. Row i of a sequence is
    in slot lengths + i of that sequence, and sees the slots up to its own, or the `window` newest of them.
    """
    _, batch, kv_heads, capacity, _ = stack.shape
    before = jnp.arange(batch * kv_heads, dtype=jnp.int32).reshape(batch, kv_heads, 1) * capacity
    end = lengths[:, None, None] + jnp.arange(1, rows + 1, dtype=jnp.int32)[None, None, :]
    begin = jnp.zeros_like(end) if window is None else jnp.maximum(end - window, 0)
    return before + begin, before + end
