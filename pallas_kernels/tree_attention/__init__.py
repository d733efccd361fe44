"""Attention of tree rows over a cache prefix and over their own ancestors."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.implementation import choose
from pallas_kernels.tree_attention import reference

__all__ = ["tree_attention"]


def tree_attention(*arrays: jax.Array, **options: Any) -> Any:
    """`reference.tree_attention` (one array, or two with `return_lse`) by the implementation that
    `pallas_kernels.implementation` chooses."""
    # Imported where they are wanted: on CPU nobody should wait for Pallas.
    match choose("tree_attention"):
        case "tpu":
            from pallas_kernels.tree_attention import tpu

            return tpu.tree_attention(*arrays, **options)
        case "gpu":
            from pallas_kernels.tree_attention import gpu

            return gpu.tree_attention(*arrays, **options)
        case "reference":
            return reference.tree_attention(*arrays, **options)
