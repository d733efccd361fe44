"""Node sets, which a checkpoint may contain: the nodes of the draft heads' tree that are worth a tree row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenswift_jax.errors import UserError, shortened

# Paths from depth 1 down. An entry is the rank of the candidate at its depth; every path follows its prefixes.
NodeSet = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class NodeSets:
    """A checkpoint's node sets, best path first; None if it has none for a schedule.

    Attributes:
      partial: node set of the schedule in which the backbone guesses depth 1 and the heads guess deeper.
      fused: node set of the schedule in which the first head guesses depth 1.
    """

    partial: NodeSet | None = None
    fused: NodeSet | None = None


NO_NODE_SETS = NodeSets()


def widths(nodes: NodeSet) -> tuple[int, ...]:
    """Candidates that a node set needs at each depth: one more than the greatest rank."""
    depth = max(map(len, nodes))
    return tuple(1 + max(path[level] for path in nodes if len(path) > level) for level in range(depth))


@lru_cache(maxsize=256)  # every text makes its plans, and one set takes milliseconds
def within_budget(nodes: NodeSet, budget: int, *, shared: bool) -> NodeSet:
    """The nodes of a set, in its order, that can be among its `budget` best for some draft probabilities.

    A node is no better than its ancestors, and a candidate no better than those of lower rank below the same parent. If
    all nodes of a depth share their candidates (`shared`), a node is also no better than any path of the same or lower
    ranks that is not deeper. Without this, drafting ranks candidates that no tree can keep (cost: five times the time
    of the top-k of a tree of one node).
    """
    return tuple(path for path in nodes if _at_least_as_good(path, nodes, shared) <= budget)


def _at_least_as_good(path: tuple[int, ...], nodes: NodeSet, shared: bool) -> int:
    """The number of nodes of a set that are at least as good as `path`, itself included."""
    if shared:
        return sum(
            len(other) <= len(path) and all(rank <= most for rank, most in zip(other, path, strict=False))
            for other in nodes
        )
    return sum(
        len(other) <= len(path) and other[:-1] == path[: len(other) - 1] and other[-1] <= path[len(other) - 1]
        for other in nodes
    )


@lru_cache(maxsize=256)
def product_within(widths: tuple[int, ...], budget: int) -> NodeSet:
    """All paths of so many candidates a depth that can be among the `budget` best, if all nodes of a depth share their
    candidates (`within_budget`)."""
    found: list[tuple[int, ...]] = []
    level = [((), 0, 1)]  # path, nodes at least as good, and those of them at its depth
    for width in widths:
        below = []
        for path, before, abreast in level:
            for rank in range(min(width, (budget - before) // abreast)):
                here = abreast * (rank + 1)
                below.append(((*path, rank), before + here, here))
        found += [path for path, *_ in below]
        level = below
    return tuple(found)


def parse_node_sets(value: Any, num_heads: int) -> NodeSets:
    """Parses `tokenswift.node_set` of a config.json: null, or {"partial": [[0], [0, 0], [1], ...], "fused": [...]}.

    Raises:
      UserError: the value does not have that form; a path is empty, repeated, deeper than the heads guess, or not after
        its prefix.
    """
    if value is None:
        return NO_NODE_SETS
    if not isinstance(value, Mapping) or not set(value) <= {"partial", "fused"}:
        raise UserError(
            f'node_set in config.json is {shortened(value)}; it must be {{"partial": paths, "fused": paths}} or null'
        )
    deepest = {"partial": num_heads + 1, "fused": num_heads}
    return NodeSets(**{name: _nodes(name, paths, deepest[name]) for name, paths in value.items() if paths is not None})


def _nodes(name: str, paths: Any, deepest: int) -> NodeSet:
    where = f"node_set.{name} in config.json"
    if not isinstance(paths, Sequence) or isinstance(paths, str) or not paths:
        raise UserError(f"{where} is {shortened(paths)}; it must be a list of paths such as [[0], [0, 0], [1]]")
    nodes: dict[tuple[int, ...], None] = {}
    for path in paths:
        if not isinstance(path, Sequence) or not path or any(type(rank) is not int or rank < 0 for rank in path):
            raise UserError(f"{where} has the path {shortened(path)}; a path is a list of ranks, whole numbers from 0")
        if len(path) > deepest:
            raise UserError(f"{where} has the path {shortened(path)} of {len(path)} depths; the heads guess {deepest}")
        path = tuple(path)
        if path in nodes:
            raise UserError(f"{where} has the path {list(path)} twice")
        if len(path) > 1 and path[:-1] not in nodes:
            raise UserError(f"{where} has the path {list(path)} without {list(path[:-1])} before it")
        nodes[path] = None
    return tuple(nodes)
