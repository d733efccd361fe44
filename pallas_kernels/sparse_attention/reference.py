"""Sparse attention in plain jnp: the definition, and the implementation on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dtypes import wide_dtype


def sparse_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    own_keys: jax.Array,
    own_values: jax.Array,
    *,
    layer: int | jax.Array,
    blocks: jax.Array,
    block_size: int,
    lengths: jax.Array,
    tree_mask: jax.Array,
    positions: jax.Array,
    window: int | None,
    scale: float,
    key_scales: jax.Array | None,
    value_scales: jax.Array | None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`pallas_kernels.sparse_attention.sparse_attention`: it gathers the named blocks, then takes one softmax."""
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads = keys.shape[2]
    group = query_heads // kv_heads
    wide = wide_dtype(queries.dtype)

    slots = named_slots(blocks, block_size, lengths)
    there = slots >= 0
    row = jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    head = jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
    at = (jnp.asarray(layer, jnp.int32), row, head, jnp.maximum(slots, 0))

    def gathered(stack: jax.Array, scales: jax.Array | None) -> jax.Array:
        taken = stack[at]
        if scales is not None:
            taken = taken.astype(wide) * scales[at].astype(wide)[..., None]
        # Without this mask, a NaN in a slot that is not live reaches every output, since 0 * NaN is NaN.
        return jnp.where(there[..., None], taken, jnp.zeros((), taken.dtype)).astype(queries.dtype)

    near = jnp.broadcast_to(there[:, :, None, :], (batch, kv_heads, rows, slots.shape[-1]))
    own_visible = jnp.broadcast_to(tree_mask[:, None], (batch, kv_heads, rows, rows))
    if window is not None:
        oldest = (positions - window + 1)[:, None, :, None]
        near = near & (slots[:, :, None, :] >= oldest)
        own_visible = own_visible & (positions[:, None, None, :] >= oldest)
    visible = jnp.concatenate([near, own_visible], axis=-1)[:, :, None]

    all_keys = jnp.concatenate([gathered(keys, key_scales), own_keys.swapaxes(1, 2)], axis=2)
    all_values = jnp.concatenate([gathered(values, value_scales), own_values.swapaxes(1, 2)], axis=2)
    grouped = queries.reshape(batch, rows, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bhgrd,bhcd->bhgrc", grouped, all_keys, preferred_element_type=wide)
    scores = jnp.where(visible, scores * jnp.asarray(scale, wide), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    # A row that overflowed must spoil the rows that see it and no other. Without these masks it spoils every row, since
    # 0 * NaN is NaN.
    finite = jnp.isfinite(all_values).all(axis=-1)
    sees_non_finite = (visible & ~finite[:, :, None, None, :]).any(axis=-1, keepdims=True)
    all_values = jnp.where(finite[..., None], all_values, jnp.zeros((), all_values.dtype))
    mixed = jnp.einsum("bhgrc,bhcd->bhgrd", weights.astype(all_values.dtype), all_values, preferred_element_type=wide)
    mixed = jnp.where(sees_non_finite, jnp.nan, mixed).astype(queries.dtype)
    mixed = mixed.transpose(0, 3, 1, 2, 4).reshape(batch, rows, query_heads, head_dim)
    if not return_lse:
        return mixed
    lse = jax.nn.logsumexp(scores, axis=-1)
    return mixed, lse.transpose(0, 3, 1, 2).reshape(batch, rows, query_heads)


def named_slots(blocks: jax.Array, block_size: int, lengths: jax.Array) -> jax.Array:
    """The slots of each named block in turn, int32 [batch, kv_heads, table * block_size]; -1 where an entry names no
    block or a slot is not below the sequence's length."""
    within = jnp.arange(block_size, dtype=jnp.int32)
    slots = blocks[..., None] * block_size + within[None, None, None]
    there = (blocks[..., None] >= 0) & (slots < lengths[:, None, None, None])
    return jnp.where(there, slots, jnp.int32(-1)).reshape(*blocks.shape[:2], -1)
