"""Node sets, which a checkpoint may contain: the nodes of the draft heads' tree that are worth a tree row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenswift_jax.errors import UserError

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
            f'node_set in config.json is {_short(value)}; it must be {{"partial": paths, "fused": paths}} or null'
        )
    deepest = {"partial": num_heads + 1, "fused": num_heads}
    return NodeSets(**{name: _nodes(name, paths, deepest[name]) for name, paths in value.items() if paths is not None})


def _nodes(name: str, paths: Any, deepest: int) -> NodeSet:
    where = f"node_set.{name} in config.json"
    if not isinstance(paths, Sequence) or isinstance(paths, str) or not paths:
        raise UserError(f"{where} is {_short(paths)}; it must be a list of paths such as [[0], [0, 0], [1]]")
    nodes: dict[tuple[int, ...], None] = {}
    for path in paths:
        if not isinstance(path, Sequence) or not path or any(type(rank) is not int or rank < 0 for rank in path):
            raise UserError(f"{where} has the path {_short(path)}; a path is a list of ranks, whole numbers from 0")
        if len(path) > deepest:
            raise UserError(f"{where} has the path {_short(path)} of {len(path)} depths; the heads guess {deepest}")
        path = tuple(path)
        if path in nodes:
            raise UserError(f"{where} has the path {list(path)} twice")
        if len(path) > 1 and path[:-1] not in nodes:
            raise UserError(f"{where} has the path {list(path)} without {list(path[:-1])} before it")
        nodes[path] = None
    return tuple(nodes)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
