"""The full KV cache: every committed position of the text, plus scratch rows past it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.quantize import narrowed
from tokenswift_jax.models.config import ModelConfig

BLOCK = 256  # capacities are multiples of it, so that block-wise readers never meet a ragged end


@pytree
class FullCache:
    """Keys and values by layer.

    Attributes:
      keys: rotated keys [layers, batch, kv_heads, capacity, head_dim] in the model's dtype; slot i holds
        position i. Slots at or past a row's committed length are scratch: their content means nothing.
      values: likewise.
      key_scales, value_scales: float32 [layers, batch, kv_heads, capacity] where keys and values are int8
        (`narrow.narrowed`), as a draft cache's may be; else None.
    """

    keys: jax.Array = axes("layers", "batch", "kv_heads", "slots", "head_dim")
    values: jax.Array = axes("layers", "batch", "kv_heads", "slots", "head_dim")
    key_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "slots", default=None)
    value_scales: jax.Array | None = axes("layers", "batch", "kv_heads", "slots", default=None)

    @property
    def stacks(self) -> tuple[jax.Array, ...]:
        """Every array: keys, values, and their scales where there are some."""
        scales = (self.key_scales, self.value_scales)
        return (self.keys, self.values, *[scale for scale in scales if scale is not None])

    def stored(self, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
        """Keys and values [..., head_dim] as this cache's `stacks` hold them."""
        if self.key_scales is None:
            return keys, values
        (keys, key_scales), (values, value_scales) = narrowed(keys), narrowed(values)
        return keys, values, key_scales, value_scales

    def first(self, slots: int) -> FullCache:
        """The first `slots` slots of every row, a copy."""
        return FullCache(*[stack[:, :, :, :slots] for stack in self.stacks])

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]


def round_up(size: int, block: int = BLOCK) -> int:
    """The smallest multiple of `block` that is at least `size`."""
    return -(-size // block) * block


def cache_bytes(config: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> int:
    """Bytes of the keys and values of `capacity` slots for every layer and row of a batch."""
    elements = 2 * config.num_layers * batch * config.num_kv_heads * capacity * config.head_dim
    return elements * jnp.dtype(dtype).itemsize


def empty_cache(config: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype) -> FullCache:
    """A cache of zeros with `capacity` slots a row."""
    shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
    return FullCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write_rows(stack: jax.Array, rows: jax.Array, layer: int, starts: jax.Array) -> jax.Array:
    """Lays rows [layers', batch, kv_heads, rows, head_dim] at slots starts[b].. of layers layer.. of a stacked cache;
    of scales, which have no last dimension, likewise.

    One update a batch row: a vmapped update would copy the cache. The caller keeps starts + rows within capacity.
    """
    zero = jnp.zeros((), jnp.int32)
    for index in range(stack.shape[1]):
        at = (jnp.int32(layer), jnp.int32(index), zero, starts[index], *[zero] * (stack.ndim - 4))
        stack = lax.dynamic_update_slice(stack, rows[:, index : index + 1], at)
    return stack


def take_rows(rows: jax.Array, path: jax.Array) -> jax.Array:
    """Rows [layers, batch, kv_heads, rows, head_dim] gathered along a path int32 [batch, depth]."""
    return jnp.take_along_axis(rows, path[None, :, None, :, None], axis=3)
