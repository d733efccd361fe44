"""The definition: a sum, and its RMSNorm with the mean in float32 or wider, as transformers computes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dtypes import wide_dtype


def add_norm(stream: jax.Array, added: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """As `pallas_kernels.add_norm`."""
    stream = stream + added
    return stream, rms_norm(stream, scale, eps)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * scale over the last axis."""
    wide = x.astype(wide_dtype(x.dtype))
    variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(variance + jnp.asarray(eps, wide.dtype))).astype(x.dtype)
    return normed * jnp.expand_dims(scale, range(x.ndim - 1))
