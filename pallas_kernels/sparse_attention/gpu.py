"""Sparse attention for NVIDIA GPUs: the kernel of tree attention, which walks the table instead of the prefix."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.tree_attention import gpu


def sparse_attention(*arrays: jax.Array, blocks: jax.Array, block_size: int, **options: Any) -> Any:
    """`reference.sparse_attention` by the GPU kernel; raises ValueError beyond the limits of `tree_attention.gpu`."""
    return gpu.tree_attention(*arrays, **options, key_positions=None, blocks=blocks, block_size=block_size)
