"""K/V in 8 bits, with a scale for every position and head."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dtypes import wide_dtype

# Dtypes by the names that callers pass.
CACHE_DTYPES: dict[str, jnp.dtype] = {"int8": jnp.dtype(jnp.int8), "float8_e4m3": jnp.dtype(jnp.float8_e4m3fn)}
SCALE_BYTES = 4  # scales are float32


def quantize_kv(rows: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Quantises keys or values [..., head_dim] to numbers of `dtype` [..., head_dim] and float32 scales [...].

    The largest magnitude of a position and head becomes the largest number of `dtype`, 127 or 448. The others round to
    the nearest number, ties to even.
    """
    wide = rows.astype(wide_dtype(rows.dtype))
    largest = jnp.max(jnp.abs(wide), axis=-1)
    most = 127 if dtype == jnp.int8 else float(jnp.finfo(dtype).max)
    # A row that is not finite gets a scale that is not finite, so that its readers can tell.
    scales = (jnp.where(largest == 0, jnp.ones_like(largest), largest) / most).astype(jnp.float32)
    numbers = wide / scales[..., None].astype(wide.dtype)
    if dtype == jnp.int8:
        numbers = jnp.round(numbers)
    # Without the clip, a scale that float32 rounded down would push the largest number beyond `dtype`.
    return jnp.clip(numbers, -most, most).astype(dtype), scales


def dequantize_kv(numbers: jax.Array, scales: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Keys or values [..., head_dim] in `dtype`, from the numbers and scales of `quantize_kv`."""
    wide = wide_dtype(dtype)
    return (numbers.astype(wide) * scales[..., None].astype(wide)).astype(dtype)
