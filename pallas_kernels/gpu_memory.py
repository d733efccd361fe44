"""Memory within a Triton program of Pallas: masked stores, and the order of the writes and reads of its warps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.implementation import interpret


def store_row(ref: Any, text: jax.Array, places: jax.Array, values: jax.Array, where: jax.Array) -> None:
    """Stores values at places of a text's row of an array, only `where` and only within the row."""
    size = ref.shape[1]
    where &= places < size
    # The interpreter drops writes past an array; Triton does not execute those that are masked.
    plgpu.store(ref.at[text, jnp.where(where, places, size)], values, mask=where)


def synchronise() -> None:
    """Lets every warp of the program see the writes of the others. The interpreter runs one operation at a time."""
    if not interpret():
        plgpu.debug_barrier()
