"""Keys and values in 8 bits, with a scale for every position and head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dtypes import wide_dtype

# By the names that callers give.
CACHE_DTYPES: dict[str, jnp.dtype] = {"int8": jnp.dtype(jnp.int8), "float8_e4m3": jnp.dtype(jnp.float8_e4m3fn)}
SCALE_BYTES = 4  # scales are float32


def quantized(rows: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Numbers of `dtype` [..., head_dim] and float32 scales [...] of keys or values [..., head_dim].

    The largest magnitude of a position and head becomes the largest number of `dtype`, 127 or 448. Numbers are rounded
    to the nearest, ties to even.
    """
    wide = rows.astype(wide_dtype(rows.dtype))
    largest = jnp.max(jnp.abs(wide), axis=-1)
    most = 127 if dtype == jnp.int8 else float(jnp.finfo(dtype).max)
    # A row that is not finite gets a scale that is not, so that whoever reads the row knows.
    scales = (jnp.where(largest == 0, jnp.ones_like(largest), largest) / most).astype(jnp.float32)
    numbers = wide / scales[..., None].astype(wide.dtype)
    if dtype == jnp.int8:
        numbers = jnp.round(numbers)
    # A scale that float32 rounded down would lift the largest beyond `dtype`.
    return jnp.clip(numbers, -most, most).astype(dtype), scales


def dequantized(numbers: jax.Array, scales: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Keys or values [..., head_dim] in `dtype` of `quantized`'s numbers and scales."""
    wide = wide_dtype(dtype)
    return (numbers.astype(wide) * scales[..., None].astype(wide)).astype(dtype)
