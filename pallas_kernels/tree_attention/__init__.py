"""Attention of tree rows over a cache prefix and over their own ancestors."""

from __future__ import annotations

from typing import Any

import jax

from pallas_kernels.implementation import choose
from pallas_kernels.tree_attention import reference

__all__ = ["tree_attention"]


def tree_attention(*arrays: jax.Array, **options: Any) -> jax.Array:
    """`reference.tree_attention`, by the implementation that `pallas_kernels.implementation` chooses."""
    choose("tree_attention", ("reference",))
    return reference.tree_attention(*arrays, **options)
