"""Attention of tree rows over a cache prefix and over their own ancestors."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels import cpu
from pallas_kernels.implementation import choose
from pallas_kernels.tree_attention import reference

__all__ = ["tree_attention"]


def tree_attention(queries: jax.Array, *arrays: jax.Array, **options: Any) -> Any:
    """`reference.tree_attention` (one array, or two with `return_lse`) by the implementation that
    `pallas_kernels.implementation` chooses; the default scale is head_dim ** -0.5."""
    options.setdefault("scale", queries.shape[-1] ** -0.5)
    # Without these late imports, a process waits for the import of Pallas or Numba, which it may never use.
    match choose("tree_attention"):
        case "tpu":
            from pallas_kernels.tree_attention import tpu

            return tpu.tree_attention(queries, *arrays, **options)
        case "gpu":
            from pallas_kernels.tree_attention import gpu

            return gpu.tree_attention(queries, *arrays, **options)
        case "reference":
            if _for_numba(queries, *arrays, **options):
                from pallas_kernels.cpu import attention

                return attention.tree_attention(queries, *arrays, **options)
            return reference.tree_attention(queries, *arrays, **options)


def _for_numba(queries: jax.Array, keys: jax.Array, *_: jax.Array, window: int | None, **options: Any) -> bool:
    """Whether the Numba kernel computes this call: a few rows over a float32 cache, without a sliding window."""
    wide = queries.shape[-1] % cpu.HEAD_DIM == 0
    return wide and window is None and cpu.serves(queries.shape[1], queries, keys)
