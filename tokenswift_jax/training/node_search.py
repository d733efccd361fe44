"""Which nodes a tree of a given size should hold, from how often candidates of each rank turned out right.

A node is named by its path of ranks below the root: [0, 2] is the third best candidate of depth 2 under the best of
depth 1. How much a set of nodes accepts is the sum, over its nodes, of the chance that the node lies on the drawn path.
A child's chance is at most its parent's, so taking the likeliest node again and again gives, for every budget at once,
a set that no other set of that size beats, closed under parents, each the beginning of the next.

What is assumed: the chance of a rank is conditional on the ranks above it where enough roots took that path. Where few
did, it is drawn towards the chance of that rank after *any* accepted parent of that depth, and that one towards its
chance wherever the parents stand (ranks of different depths independent), each as `_PRIOR` more roots would do. Roots
count alike wherever they stand in the text; in decoding they follow each other at the distance that was accepted.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

Path = tuple[int, ...]

MOST_NODES = 64
_PRIOR = 16.0  # roots


def best_nodes(ranks: np.ndarray, width: int, most: int = MOST_NODES) -> list[tuple[Path, float]]:
    """The nodes in the order in which a growing budget takes them, with their estimated chances; at most `most`.

    Args:
      ranks: int `[roots, depth]`, the rank that the token drawn 1, 2, .. after the root has among the candidates of
        its depth given the drawn tokens above it; `width` or more where it is not among them.
      width: candidates a depth that were looked at.

    Nodes of no chance at all are left out, so there may be fewer.
    """
    if ranks.ndim != 2 or not len(ranks):
        raise ValueError(f"ranks of shape {ranks.shape} name no roots")
    after_any = _marginals(ranks, width)
    taken: list[tuple[Path, float]] = []
    heap: list[tuple[float, int, Path, np.ndarray]] = []

    def push_children(path: Path, chance: float, reached: np.ndarray) -> None:
        depth = len(path)
        if depth == ranks.shape[1]:
            return
        count = reached.sum()
        for rank in range(width):
            here = reached & (ranks[:, depth] == rank)
            # At depth 1 every root is a parent, so the prior is the frequency itself and changes nothing.
            share = (here.sum() + _PRIOR * after_any[depth][rank]) / (count + _PRIOR)
            if share > 0:
                heapq.heappush(heap, (-chance * share, depth + 1, (*path, rank), here))

    push_children((), 1.0, np.ones(len(ranks), bool))
    while heap and len(taken) < most:
        negative, _, path, reached = heapq.heappop(heap)
        taken.append((path, -negative))
        push_children(path, -negative, reached)
    return taken


def _marginals(ranks: np.ndarray, width: int) -> list[np.ndarray]:
    """Per depth the chance `[width]` of each rank after an accepted parent, whichever it was."""
    chances = []
    reached = np.ones(len(ranks), bool)
    for column in ranks.T:
        alone = np.asarray([np.mean(column == rank) for rank in range(width)])
        hits = np.asarray([np.sum(reached & (column == rank)) for rank in range(width)])
        chances.append((hits + _PRIOR * alone) / (reached.sum() + _PRIOR))
        reached &= column < width
    return chances


def accepted_by(ranks: np.ndarray, nodes: Sequence[Path]) -> np.ndarray:
    """int `[roots]`: drafts that each root's iteration accepts when the tree holds `nodes` (closed under parents)."""
    held = {tuple(node) for node in nodes}
    accepted = np.zeros(len(ranks), np.int64)
    for root, row in enumerate(ranks.tolist()):
        while accepted[root] < len(row) and tuple(row[: accepted[root] + 1]) in held:
            accepted[root] += 1
    return accepted


def expected_tokens(texts: Sequence[np.ndarray], nodes: Sequence[Path]) -> float:
    """Tokens per iteration along texts when every tree holds `nodes`, n-grams aside.

    Args:
      texts: per text the ranks int `[roots, depth]` of `best_nodes`, one row for every token but the last, in order.
        The first root is the first generated token; an iteration that accepted m drafts is followed by that of the
        root m + 1 further on, as in decoding.

    NaN without any iteration.
    """
    tokens = iterations = 0
    for ranks in texts:
        accepted, root = accepted_by(ranks, nodes), 0
        while root < len(ranks):
            root += int(accepted[root]) + 1
            iterations += 1
        tokens += len(ranks)  # the last iteration's run is cut at the end of the text
    return tokens / iterations if iterations else float("nan")
