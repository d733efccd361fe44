"""The stacked cache as one long sequence of slots, in which every row of every head sees one span.

So a library's kernel reads any layer of it in place: what it takes for one KV head is all of them, and what it takes
for a mask says where a layer and a head lie.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def one_sequence(stack: jax.Array) -> jax.Array:
    """A stacked cache [layers, batch, kv_heads, capacity, head_dim] as [slots of all, head_dim]; a view."""
    return stack.reshape(-1, stack.shape[-1])


def spans(
    stack: jax.Array, layer: int, lengths: jax.Array, rows: int, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """First slot and the one past the last, int32 [batch, kv_heads, rows] each, that rows see in `one_sequence`.

    Row i of a sequence stands in slot lengths + i of its own, and sees what lies up to there, or the `window` newest.
    """
    _, batch, kv_heads, capacity, _ = stack.shape
    before = (layer * batch + jnp.arange(batch, dtype=jnp.int32)[:, None]) * kv_heads
    before = (before + jnp.arange(kv_heads, dtype=jnp.int32)[None, :]) * capacity
    end = lengths[:, None] + jnp.arange(1, rows + 1, dtype=jnp.int32)[None, :]
    begin = jnp.zeros_like(end) if window is None else jnp.maximum(end - window, 0)
    return before[:, :, None] + begin[:, None, :], before[:, :, None] + end[:, None, :]
