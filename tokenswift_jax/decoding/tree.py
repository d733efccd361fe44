"""The tree of drafts: heads' Cartesian product and n-gram chains, merged by (parent, token) (paper sections 3.2, 3.3).

Every place a draft may take is a *slot*, known statically: slot 0 is the root, then depth by depth the Cartesian nodes
and the chain tokens of that depth. Building merges slots (a chain token that repeats another node gives its slot up)
and, under a budget, keeps the best. Slots are few (about 100): pairwise comparisons and one top_k do everything.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tokenswift_jax.errors import UserError


@dataclass(frozen=True)
class TreeShape:
    """What a tree may hold; static, so a new shape is a new compilation.

    Attributes:
        widths: candidates per depth of the heads' Cartesian product, e.g. (1, 3, 3, 3); () without heads.
        ngram_k: n-gram chains per key, 0 for none.
        ngram_depth: tokens taken of each chain, 1 to 3.
        node_budget: nodes kept, best first; None keeps them all.
        keyed_by_root: chains continue the root (depths 1..); else each candidate of depth 1 (depths 2..).
    """

    widths: tuple[int, ...]
    ngram_k: int = 0
    ngram_depth: int = 3
    node_budget: int | None = None
    keyed_by_root: bool = True

    def __post_init__(self):
        if any(width < 1 for width in self.widths):
            raise UserError(f"a tree needs at least 1 candidate at each depth, not {self.widths}")
        if self.ngram_k < 0 or not 1 <= self.ngram_depth <= 3:
            raise UserError(f"n-gram chains: k >= 0 and a depth of 1 to 3, not {self.ngram_k} and {self.ngram_depth}")
        if not self.widths and (not self.ngram_k or not self.keyed_by_root):
            raise UserError("a tree without heads needs n-gram chains keyed by the root")
        if self.node_budget is not None and self.node_budget < 1:
            raise UserError(f"node budget: at least 1, or none for the whole tree, not {self.node_budget}")

    @property
    def keys(self) -> int:
        """First tokens whose n-grams are looked up: the root, or the candidates of depth 1."""
        return 0 if not self.ngram_k else 1 if self.keyed_by_root else self.widths[0]

    @property
    def depth(self) -> int:
        """The deepest level a node can have; the root's is 0."""
        return max(len(self.widths), self._key_depth + self.ngram_depth if self.ngram_k else 0)

    @property
    def slots(self) -> int:
        """Nodes before merging, root excluded."""
        return sum(self._products) + self.keys * self.ngram_k * self.ngram_depth

    @property
    def rows(self) -> int:
        """Rows of a verify forward: the root and the nodes kept."""
        return 1 + (self.slots if self.node_budget is None else min(self.node_budget, self.slots))

    @property
    def _key_depth(self) -> int:
        return 0 if self.keyed_by_root else 1

    def first_slot(self, depth: int, chain: bool = False) -> int:
        """The slot of the first Cartesian (or chain) node of a depth; slot 0 is the root."""
        cartesian = sum(self._products[: depth - (not chain)])
        return 1 + cartesian + self.keys * self.ngram_k * min(max(depth - 1 - self._key_depth, 0), self.ngram_depth)

    @property
    def _products(self) -> tuple[int, ...]:
        """Cartesian nodes at depth 1, 2, ..."""
        return tuple(itertools.accumulate(self.widths, lambda a, b: a * b))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "parents", "depths", "valid", "drafted_by_ngram_only", "mask", "deepest"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Tree:
    """The rows of one verify forward. Parents precede children; row 0 is the root. Nodes are unique by (parent, token).

    Attributes:
        tokens: int32 `[batch, rows]`; 0 where invalid.
        parents: int32 `[batch, rows]`, row of the parent; 0 for the root itself and where invalid.
        depths: int32 `[batch, rows]`, position minus the root's; 0 where invalid.
        valid: bool `[batch, rows]`; the root always is.
        drafted_by_ngram_only: bool `[batch, rows]`; a chain drafted the node and no head did.
        mask: bool `[batch, rows, rows]`; a row sees its ancestors and itself, an invalid row only itself.
        deepest: int32 `[batch]`, the greatest depth of a valid row: the depth offered.
    """

    tokens: jax.Array
    parents: jax.Array
    depths: jax.Array
    valid: jax.Array
    drafted_by_ngram_only: jax.Array
    mask: jax.Array
    deepest: jax.Array


def build(
    shape: TreeShape,
    root: jax.Array,
    candidates: Sequence[tuple[jax.Array, jax.Array]],
    ngrams: tuple[jax.Array, jax.Array, jax.Array] | None = None,
) -> Tree:
    """Merges the heads' Cartesian product with the n-gram chains and keeps the best `node_budget` nodes.

    Nodes rank by draft probability: for heads the product along the path, for chains the key's probability (the root's
    is 1) times (counts of the chains through the node) / (row total + 1), for both the larger; then shallower first;
    then in slot order (within a depth Cartesian nodes first, then chains, as given). No child outranks its parent.

    Args:
        shape: the static shape; `rows` below is `shape.rows`.
        root: int32 `[batch]`, the newest emitted token.
        candidates: per depth int32 tokens `[batch, width]`, distinct within a depth, and float log-probabilities
            `[batch, width]` (`processors.top_candidates`), -inf where a filter removed the token. They apply
            under every node of the depth above.
        ngrams: what `ngram.lookup` returns for the keys: continuations `[batch, keys, k, 3]`, counts
            `[batch, keys, k]`, totals `[batch, keys]`; None iff `shape.ngram_k` is 0.

    Raises:
        ValueError: the inputs are not those of the shape.
    """
    if tuple(tokens.shape[1] for tokens, _ in candidates) != shape.widths or (ngrams is None) != (shape.ngram_k == 0):
        raise ValueError("candidates or n-grams do not fit the tree's shape")
    probabilities = [_probability(log_probs) for _, log_probs in candidates]
    drafts = [tokens for tokens, _ in candidates]
    heads, chains = _cartesian(shape, drafts, probabilities), []
    if ngrams is not None:
        heads, chains = _chains(shape, heads, drafts, probabilities, ngrams)
    score, fields = _in_slot_order(shape, root, heads, chains)
    if shape.node_budget is None:
        chosen = jnp.broadcast_to(jnp.arange(shape.rows, dtype=jnp.int32)[None], score.shape)
    else:
        score, chosen = lax.top_k(score, shape.rows)  # ties to the lower slot: shallower, then in order
        chosen = chosen.astype(jnp.int32)
        fields = fields.at[jnp.arange(root.shape[0], dtype=jnp.int32)[:, None], chosen].get(mode="clip")
    valid = score >= 0
    tokens, depths, by_chain, path = jnp.split(jnp.where(valid[..., None], fields, 0), (1, 2, 3), axis=-1)
    # path[r, t] is the slot of r's ancestor at depth t, so comparing slots finds ancestors without a walk.
    level = jnp.arange(shape.depth + 1, dtype=jnp.int32)[None, None]
    both = valid[:, :, None] & valid[:, None, :]
    is_slot = (path[:, :, None, :] == chosen[:, None, :, None]) & both[..., None]
    seen = jnp.any(is_slot & (level < depths)[:, :, None, :], axis=-1)
    is_parent = jnp.any(is_slot & (level == depths - 1)[:, :, None, :], axis=-1)
    row = jnp.arange(shape.rows, dtype=jnp.int32)
    return Tree(
        tokens=tokens[..., 0],
        parents=jnp.sum(jnp.where(is_parent, row[None, None, :], 0), axis=-1, dtype=jnp.int32),
        depths=depths[..., 0],
        valid=valid,
        drafted_by_ngram_only=by_chain[..., 0] > 0,
        mask=seen | (row[:, None] == row[None, :])[None],
        deepest=jnp.max(depths[..., 0], axis=-1),
    )


@dataclass(frozen=True)
class _Level:
    """The slots of one depth from one source, all `[batch, nodes]`, path `[batch, nodes, depth + 1]`.

    A negative score means that the slot holds no node. `path[..., t]` is the slot of the ancestor at depth t.
    """

    depth: int
    tokens: jax.Array
    score: jax.Array
    path: jax.Array


def _probability(log_probs: jax.Array) -> jax.Array:
    """exp in float32, at most 1; -1 for -inf and NaN.

    Scores are products of these by factors <= 1, so rounding cannot lift a child above its parent, unless a fusion
    recomputes exp with another last bit: hence the barrier.
    """
    probability = jnp.where(log_probs > -jnp.inf, jnp.minimum(jnp.exp(log_probs), 1), -1)
    return lax.optimization_barrier(probability.astype(jnp.float32))


def _cartesian(shape: TreeShape, drafts: list[jax.Array], probabilities: list[jax.Array]) -> list[_Level]:
    """The heads' nodes, one level a depth: every candidate under every node of the depth above."""
    levels: list[_Level] = []
    for depth, (tokens, probability) in enumerate(zip(drafts, probabilities, strict=True), 1):
        batch, width = tokens.shape
        above = levels[-1].score if levels else jnp.ones((batch, 1), jnp.float32)
        nodes = above.shape[1] * width
        above, own = above[:, :, None], probability[:, None, :]
        score = jnp.where((above >= 0) & (own >= 0), above * own, -1).reshape(batch, nodes)
        path = np.zeros((nodes, shape.depth + 1), np.int32)
        for t in range(1, depth + 1):
            path[:, t] = shape.first_slot(t) + np.arange(nodes) // math.prod(shape.widths[t:depth])
        path = jnp.broadcast_to(jnp.asarray(path)[None], (batch, *path.shape))
        levels.append(_Level(depth, jnp.tile(tokens, (1, nodes // width)), score, path))
    return levels


def _chains(
    shape: TreeShape,
    heads: list[_Level],
    drafts: list[jax.Array],
    probabilities: list[jax.Array],
    ngrams: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[list[_Level], list[_Level]]:
    """The heads' levels with the scores of the nodes that chains run through raised, and the chains' levels.

    A chain token gives its slot up to the Cartesian node of the same path, else to the first chain of that path.
    """
    continuations, counts, totals = ngrams
    batch, keys, k = counts.shape
    key_score = jnp.ones((batch, 1), jnp.float32) if shape.keyed_by_root else heads[0].score
    live = (counts > 0) & (key_score >= 0)[..., None]
    unit = lax.optimization_barrier(1 / (totals + 1).astype(jnp.float32))
    key = jnp.broadcast_to(jnp.arange(keys, dtype=jnp.int32)[None, :, None], live.shape)
    chain = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[None, None, :], live.shape)
    path = [jnp.zeros_like(key)] + [shape.first_slot(1) + key] * shape._key_depth
    same, in_heads, node = live[..., :, None] & live[..., None, :], live, key
    heads, tokens_and_scores = list(heads), []
    for step in range(shape.ngram_depth):
        depth, tokens = len(path), continuations[..., step]
        same &= tokens[..., :, None] == tokens[..., None, :]
        through = jnp.sum(jnp.where(same, counts[..., None, :], 0), axis=-1, dtype=jnp.int32)
        owner = jnp.min(jnp.where(same, chain[..., None, :], k), axis=-1)
        score = key_score[..., None] * jnp.minimum(through.astype(jnp.float32) * unit[..., None], 1)
        home = shape.first_slot(depth, chain=True) + key * k + owner
        if depth <= len(heads):
            candidate = jnp.arange(shape.widths[depth - 1], dtype=jnp.int32)[None, None, None, :]
            match = (tokens[..., None] == drafts[depth - 1][:, None, None, :]) & (
                probabilities[depth - 1][:, None, None, :] >= 0
            )
            branch = jnp.max(jnp.where(match, candidate, -1), axis=-1)
            in_heads &= branch >= 0
            node = node * shape.widths[depth - 1] + branch
            home = jnp.where(in_heads, shape.first_slot(depth) + node, home)
            level = heads[depth - 1]
            place = jnp.arange(level.score.shape[1], dtype=jnp.int32)[None, None, None, :]
            runs_through = in_heads[..., None] & (node[..., None] == place)
            raised = jnp.max(jnp.where(runs_through, score[..., None], -1), axis=(1, 2))
            heads[depth - 1] = replace(level, score=jnp.maximum(level.score, raised))
            owned = live & ~in_heads & (owner == chain)
        else:
            owned = live & (owner == chain)
        path.append(home)
        tokens_and_scores.append((tokens, jnp.where(owned, score, -1)))
    paths = jnp.stack([*path, *[jnp.zeros_like(key)] * (shape.depth + 1 - len(path))], axis=-1)
    paths = paths.reshape(batch, keys * k, shape.depth + 1)
    return heads, [
        _Level(depth, tokens.reshape(batch, keys * k), score.reshape(batch, keys * k), paths)
        for depth, (tokens, score) in enumerate(tokens_and_scores, 1 + shape._key_depth)
    ]


def _in_slot_order(
    shape: TreeShape, root: jax.Array, heads: list[_Level], chains: list[_Level]
) -> tuple[jax.Array, jax.Array]:
    """Score `[batch, slots]` and fields `[batch, slots, 3 + depth + 1]` (token, depth, by chain, path), root first."""
    batch = root.shape[0]
    start = _Level(
        0, root[:, None], jnp.full((batch, 1), 2, jnp.float32), jnp.zeros((batch, 1, shape.depth + 1), jnp.int32)
    )
    drafted = sorted([(x.depth, 0, x) for x in heads] + [(x.depth, 1, x) for x in chains], key=lambda item: item[:2])
    sources = [(0, 0, start), *drafted]
    static = [np.tile(np.array([[depth, by]], np.int32), (x.tokens.shape[1], 1)) for depth, by, x in sources]
    static = jnp.broadcast_to(jnp.asarray(np.concatenate(static))[None], (batch, 1 + shape.slots, 2))
    tokens = jnp.concatenate([x.tokens for *_, x in sources], axis=1)
    path = jnp.concatenate([x.path for *_, x in sources], axis=1)
    score = jnp.concatenate([x.score for *_, x in sources], axis=1)
    return score, jnp.concatenate([tokens[..., None], static, path], axis=-1)
