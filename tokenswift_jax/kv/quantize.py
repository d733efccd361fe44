"""Keys and values in 8 bits with a scale a position and head: for a draft cache, whose numbers decide no token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_HIGHEST = 127


def narrowed(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8 [..., head_dim] and float32 scales [...] of keys or values [..., head_dim]: symmetric, to the nearest."""
    wide = rows.astype(jnp.float32)
    most = jnp.max(jnp.abs(wide), axis=-1)
    scales = jnp.where(most > 0, most, 1) / _HIGHEST
    return jnp.round(wide / scales[..., None]).astype(jnp.int8), scales
