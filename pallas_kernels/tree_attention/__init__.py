"""Attention of tree rows over a cache prefix and over their own ancestors."""

from pallas_kernels.tree_attention.reference import tree_attention

__all__ = ["tree_attention"]
