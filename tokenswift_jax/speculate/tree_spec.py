"""The static shape of a tree of drafts: its number of slots at each depth and its number of tree rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.node_sets import NodeSet
from tokenswift_jax.models.node_sets import widths as widths_of


@dataclass(frozen=True)
class TreeSpec:
    """The static sizes of a tree; each new shape costs a compilation.

    Attributes:
        widths: candidates of the draft heads at each depth, e.g. (1, 3, 3, 3); () without heads.
        ngram_k: n-gram chains per key, 0 for none.
        ngram_depth: number of tokens used of each chain, 1 to 3.
        node_budget: nodes kept, best first; None keeps them all; 0 for `ROOT_ALONE`.
        keyed_by_root: chains continue the root (depths 1..); else each candidate of depth 1 (depths 2..).
        node_set: the head nodes as paths of ranks, of exactly these widths; None is the whole product of widths.
        per_parent: candidates differ from parent to parent, so drafting expands parents one by one, under a budget only
            those that could have a child within it; else all nodes of a depth share their candidates.
    """

    widths: tuple[int, ...]
    ngram_k: int = 0
    ngram_depth: int = 3
    node_budget: int | None = None
    keyed_by_root: bool = True
    node_set: NodeSet | None = None
    per_parent: bool = False

    def __post_init__(self):
        if any(width < 1 for width in self.widths):
            raise UserError(f"a tree needs at least 1 candidate at each depth, not {self.widths}")
        if self.ngram_k < 0 or not 1 <= self.ngram_depth <= 3:
            raise UserError(f"n-gram chains: k >= 0 and a depth of 1 to 3, not {self.ngram_k} and {self.ngram_depth}")
        if not self.widths and not self.ngram_k and self.node_budget == 0:
            return  # the root alone
        if not self.widths and (not self.ngram_k or not self.keyed_by_root):
            raise UserError("a tree without heads needs n-gram chains keyed by the root")
        if self.node_budget is not None and self.node_budget < 1:
            raise UserError(f"node budget: at least 1, or none for the whole tree, not {self.node_budget}")
        if self.node_set is not None and widths_of(self.node_set) != self.widths:
            raise UserError(f"a node set of {widths_of(self.node_set)} candidates a depth does not fit {self.widths}")

    @property
    def keys(self) -> int:
        """Number of first tokens to look up in the n-gram table: the root alone, or the nodes of depth 1."""
        return 0 if not self.ngram_k else 1 if self.keyed_by_root else self.level_nodes[0]

    @property
    def key_depth(self) -> int:
        """Depth of the first tokens, which chains continue."""
        return 0 if self.keyed_by_root else 1

    @property
    def calibrated(self) -> bool:
        """Whether chains compete with head nodes: if so, `ngram_calibration` scales the chains' probabilities."""
        return self.ngram_k > 0 and bool(self.widths)

    @property
    def depth(self) -> int:
        """The greatest depth of a node; the root's depth is 0."""
        return max(len(self.widths), self.key_depth + self.ngram_depth if self.ngram_k else 0)

    @property
    def slots(self) -> int:
        """Slots for nodes before merging, without the root."""
        return sum(self.level_nodes) + self._chain_slots

    @property
    def rows(self) -> int:
        """Tree rows of a verify forward: the root and the kept nodes."""
        nodes = self.slots
        if self.node_set is not None:
            nodes = min(nodes, len(self.node_set) + self._chain_slots)
        return 1 + (nodes if self.node_budget is None else min(self.node_budget, nodes))

    @cached_property
    def level_nodes(self) -> tuple[int, ...]:
        """Slots of head nodes at depth 1, 2, ..."""
        counts: list[int] = []
        for depth, width in enumerate(self.widths, 1):
            if self.node_set is not None and not self.per_parent:
                counts.append(sum(len(path) == depth for path in self.node_set))
            else:
                counts.append(self._expanded(depth, counts[-1] if counts else 1) * width)
        return tuple(counts)

    def expanded(self, depth: int) -> int:
        """Number of nodes at depth - 1 that get candidates of this depth."""
        return self._expanded(depth, self.level_nodes[depth - 2] if depth > 1 else 1)

    def _expanded(self, depth: int, above: int) -> int:
        if not self.per_parent:
            return above
        if self.node_set is not None:
            above = min(above, int(self.has_children[depth - 1].sum()))
        # A node that is not among the best budget - (depth - 1) of its level has no child within the budget: those best
        # nodes, its depth - 2 ancestors and the node itself all rank before the child.
        return above if self.node_budget is None else max(1, min(above, self.node_budget - (depth - 1)))

    @property
    def _chain_slots(self) -> int:
        return self.keys * self.ngram_k * self.ngram_depth

    def first_slot(self, depth: int, chain: bool = False) -> int:
        """The slot of the first head (or chain) node of a depth; slot 0 is the root."""
        drafted = sum(self.level_nodes[: depth - (not chain)])
        return 1 + drafted + self.keys * self.ngram_k * min(max(depth - 1 - self.key_depth, 0), self.ngram_depth)

    @cached_property
    def children(self) -> tuple[np.ndarray, ...]:
        """For depth 1, 2, ...: int32 `[places above, width]`, the place of each child in the node set's sorted paths of
        that depth; -1 if the set has no such child. Place 0 of depth 0 is the root."""
        assert self.node_set is not None
        tables = []
        above: dict[tuple[int, ...], int] = {(): 0}
        for depth, width in enumerate(self.widths, 1):
            here = {path: place for place, path in enumerate(sorted(p for p in self.node_set if len(p) == depth))}
            table = np.full((len(above), width), -1, np.int32)
            for path, place in here.items():
                table[above[path[:-1]], path[-1]] = place
            tables.append(table)
            above = here
        return tuple(tables)

    @cached_property
    def has_children(self) -> tuple[np.ndarray, ...]:
        """For depth 0, 1, ...: bool `[places]`, whether the node set contains a child of a place."""
        return tuple(np.any(table >= 0, axis=1) for table in self.children)

    def shared_places(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Parents and ranks, int32 `[nodes]` each, of the nodes of a depth if all parents share their candidates."""
        if self.node_set is not None:
            parents, ranks = np.argwhere(self.children[depth - 1] >= 0).T
        else:
            parents, ranks = np.divmod(np.arange(math.prod(self.widths[:depth])), self.widths[depth - 1])
        return parents.astype(np.int32), ranks.astype(np.int32)


ROOT_ALONE = TreeSpec((), node_budget=0)  # plain decoding
