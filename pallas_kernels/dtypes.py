"""The dtype in which the model accumulates narrow numbers."""

from __future__ import annotations

import jax.numpy as jnp


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of norms, angles, softmax and logits: float32, or float64 for float64 models."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)
