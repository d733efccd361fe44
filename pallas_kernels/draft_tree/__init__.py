"""A tree of drafts from the candidates of heads and the n-gram table of a text, as one kernel of a GPU.

The definition is `tokenswift_jax.speculate.tree.build` after `pallas_kernels.ngram_table.reference.lookup`, which all
other devices run. On a GPU XLA would launch 20 kernels for both.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from pallas_kernels.implementation import choose
from pallas_kernels.ngram_table.sets import FIELDS

__all__ = ["Candidates", "Chains", "DraftTree", "Slots", "draft_tree", "fits"]

_MOST_SLOTS, _MOST_ROWS, _MOST_ENTRIES = 512, 128, 128


class Slots(NamedTuple):
    """The static sizes of a tree: the places of its nodes, depth by depth, of each depth the candidates first.

    Attributes:
      candidates: (first slot, number) of the candidates of depth 1, 2, ...
      chains: (first slot, depth) of each token of the chains.
      k: n-gram chains; 0 for none.
      key_depth: depth of the chains' key, 0 for the root or 1 for the only candidate of depth 1.
      slots: number of slots, slot 0 (the root) included.
      rows: tree rows, the best slots.
      depth: the greatest depth of a node.
    """

    candidates: tuple[tuple[int, int], ...]
    chains: tuple[tuple[int, int], ...]
    k: int
    key_depth: int
    slots: int
    rows: int
    depth: int


class Candidates(NamedTuple):
    """The candidates of all depths, one depth after another: with arrays for each depth, XLA would launch a kernel for
    each array.

    Attributes:
      tokens: int32 [batch, nodes].
      score: float32 [batch, nodes]; negative where there is no node. No child has a higher score than its parent.
      parents: int32 [batch, nodes], indices among the candidates of the depth above.
    """

    tokens: jax.Array
    score: jax.Array
    parents: jax.Array


class Chains(NamedTuple):
    """The source of the n-gram chains.

    Attributes:
      entries: int32 [batch, sets, words], the n-gram table.
      scale: float32 [batch], the factor of n-gram probabilities.
    """

    entries: jax.Array
    scale: jax.Array


class DraftTree(NamedTuple):
    """The tree rows, best first; row 0 is the root. Invalid rows are zeros and see only themselves.

    Attributes:
      tokens, parents, depths: int32 [batch, rows].
      valid: bool [batch, rows].
      by_ngram: bool [batch, rows]; a chain drafted the node and no head did.
      mask: bool [batch, rows, rows]; a row sees its ancestors and itself.
      deepest: int32 [batch], the greatest depth of a valid row.
      path_tokens: int32 [batch, rows, depth], entry j is the token at depth j + 1 of the row's path; 0 past the row.
    """

    tokens: jax.Array
    parents: jax.Array
    depths: jax.Array
    valid: jax.Array
    by_ngram: jax.Array
    mask: jax.Array
    deepest: jax.Array
    path_tokens: jax.Array


def fits(slots: Slots, chains: Chains | None) -> bool:
    """Whether the kernel is used here: on a GPU, for trees that it can hold."""
    small = slots.slots <= _MOST_SLOTS and slots.rows <= _MOST_ROWS and slots.depth > 0
    if chains is not None:
        # Triton's arrays have powers of two as sizes.
        size = chains.entries.shape[-1] // FIELDS
        small &= size & (size - 1) == 0 and size <= _MOST_ENTRIES
    return choose("draft_tree", ("reference", "gpu") if small else ("reference",)) == "gpu"


def draft_tree(slots: Slots, root: jax.Array, candidates: Candidates | None, chains: Chains | None) -> DraftTree:
    """The tree of the best nodes, where `fits` says so.

    Nodes rank by score, then by slot. The kernel divides less exactly than XLA does, so that nodes whose scores differ
    in the last bit may rank otherwise: other drafts are verified, and the text stays the same.

    Args:
      slots: the static sizes.
      root: int32 [batch], the newest token.
      candidates: the candidates; None iff `slots.candidates` is empty.
      chains: the source of the chains; None iff `slots.k` is 0.
    """
    # Without this late import, a process on CPU waits for the import of Pallas, which it never uses.
    from pallas_kernels.draft_tree import gpu

    return gpu.draft_tree(slots, root, candidates, chains)
