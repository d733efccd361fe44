"""Scores of cached keys under one query, and the positions of the best."""

from pallas_kernels.cache_scores.reference import top_positions

__all__ = ["top_positions"]
