"""The search for the best nodes of a tree of a given size, from how often candidates of each rank were right.

A path of ranks below the root names a node: [0, 2] is the third best candidate of depth 2 under the best of depth 1.
The expected acceptance of a set of nodes is the sum, over its nodes, of the chance that the node is on the drawn path.
A child's chance is at most its parent's. So a search that takes the likeliest node again and again finds, for every
budget at once, a set that no other set of that size beats. Each set is closed under parents and is the beginning of the
next larger set.

Assumptions: the chance of a rank is conditional on the ranks above it where enough roots took that path. Where few
roots did, a prior pulls it towards the chance of that rank after *any* accepted parent of that depth, and another prior
pulls that chance towards the one for all parents (ranks of different depths independent); each prior has the weight of
`_PRIOR` more roots. All roots count equally, independent of their place in the text; in decoding, the distance from one
root to the next is the accepted length.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

Path = tuple[int, ...]

MOST_NODES = 64
_PRIOR = 16.0  # weight of a prior, in roots


def best_nodes(ranks: np.ndarray, width: int, most: int = MOST_NODES) -> list[tuple[Path, float]]:
    """The nodes in the order in which a growing budget takes them, with their estimated chances; at most `most`.

    Args:
      ranks: int `[roots, depth]`, the rank of the token drawn 1, 2, .. after the root among the candidates of its
        depth, given the drawn tokens above it; `width` or more where it is not among them.
      width: candidates a depth that were ranked.
      most: most nodes to return.

    The result leaves out nodes with no chance, so there may be fewer.
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
            # At depth 1 every root is a parent, so the prior equals the frequency and changes nothing.
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
    """The chance `[width]` of each rank after any accepted parent, one array a depth."""
    chances = []
    reached = np.ones(len(ranks), bool)
    for column in ranks.T:
        alone = np.asarray([np.mean(column == rank) for rank in range(width)])
        hits = np.asarray([np.sum(reached & (column == rank)) for rank in range(width)])
        chances.append((hits + _PRIOR * alone) / (reached.sum() + _PRIOR))
        reached &= column < width
    return chances


def accepted_by(ranks: np.ndarray, nodes: Sequence[Path]) -> np.ndarray:
    """The drafts that each root's iteration accepts with a tree of `nodes` (closed under parents), int `[roots]`."""
    chosen = {tuple(node) for node in nodes}
    accepted = np.zeros(len(ranks), np.int64)
    for root, row in enumerate(ranks.tolist()):
        while accepted[root] < len(row) and tuple(row[: accepted[root] + 1]) in chosen:
            accepted[root] += 1
    return accepted


def expected_tokens(texts: Sequence[np.ndarray], nodes: Sequence[Path]) -> float:
    """Tokens per iteration along texts when every tree contains `nodes`, without n-grams; NaN without iterations.

    Args:
      texts: for each text, the ranks int `[roots, depth]` of `best_nodes`, one root for every token except the last,
        in order. The first root is the first generated token. After an iteration that accepts m drafts, the next root
        is m + 1 tokens further, as in decoding.
    """
    tokens = iterations = 0
    for ranks in texts:
        accepted, root = accepted_by(ranks, nodes), 0
        while root < len(ranks):
            root += int(accepted[root]) + 1
            iterations += 1
        tokens += len(ranks)  # the end of the text cuts the last iteration
    return tokens / iterations if iterations else float("nan")
