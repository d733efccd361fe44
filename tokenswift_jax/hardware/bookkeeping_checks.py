"""The kernels of an iteration's bookkeeping and draws on this machine's device against their definitions on its CPU,
exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.commit_text import Ends, Text, commit_text
from pallas_kernels.implementation import compiling_for
from pallas_kernels.order_statistics import ONE_BIT
from pallas_kernels.shortlist_edges import shortlist_edges
from tokenswift_jax.speculate import ngram, ngram_fill
from tokenswift_jax.speculate.drafted_tree import drafted_tree
from tokenswift_jax.speculate.tree import Tree
from tokenswift_jax.speculate.tree_expand import shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step.accept import tree_rows

BATCH, CAPACITY, VOCAB, SLOTS = 16, 256, 40, 32
LISTED = 4096  # scores of a shortlist
SHAPES = {
    16: TreeSpec((3, 3, 3), 20, node_budget=15),
    64: TreeSpec((1, 3, 3, 3), 20, node_budget=63, keyed_by_root=False),
}


def check_bookkeeping() -> Iterator[dict[str, Any]]:
    """A row for each kernel and size of tree; `relative_error` is the number of wrong elements."""
    for rows in SHAPES:
        for kernel, wrong in wrong_elements(rows).items():
            yield {"kernel": kernel, "rows": rows, "relative_error": float(wrong), "good": wrong == 0}


def wrong_elements(rows: int) -> dict[str, int]:
    """How many elements of each kernel's results differ from those of its definition, for trees of 16 or 64 rows.

    The candidates' probabilities are random numbers, so that no two nodes' scores differ in the last bit alone, which
    the kernel of the tree rounds otherwise.
    """
    shape, given = SHAPES[rows], _given(SHAPES[rows], rows)
    found = jax.jit(lambda a: _iteration(shape, a))(given)
    with jax.default_device(jax.devices("cpu")[0]), compiling_for("reference"):
        expected = jax.jit(lambda a: _iteration(shape, a))(given)
    return {
        kernel: sum(
            int((np.asarray(one) != np.asarray(other)).sum())
            for one, other in zip(jax.tree.leaves(found[kernel]), jax.tree.leaves(expected[kernel]), strict=True)
        )
        for kernel in expected
    }


def _iteration(shape: TreeSpec, given: dict[str, Any]) -> dict[str, Any]:
    """The results of each kernel; each of them gets the definition's results of the ones before it."""
    table = ngram.NgramTable(given["entries"], given["inserted"])
    levels = shared_levels(shape, given["candidates"])
    tree = drafted_tree(shape, given["tokens"][:, 0], levels, table)
    with compiling_for("reference"):
        plain = drafted_tree(shape, given["tokens"][:, 0], levels, table)
    done = _committed(shape, plain, given)
    with compiling_for("reference"):
        text = _committed(shape, plain, given).text
    updated = ngram.updated(table, text.tokens, text.length - 2, shape.depth + 1, given["tokens"], shape.ngram_k)
    fields = tree.tokens, tree.parents, tree.depths, tree.valid, tree.drafted_by_ngram_only, tree.mask, tree.deepest
    scores, highest, keep, top_k, top_p, weights = given["draw"]
    edges = shortlist_edges(scores, highest, keep, top_k, top_p, weights, ONE_BIT)
    return {"draft_tree": fields, "commit_text": done, "ngram_table": updated, "shortlist_edges": edges}


def _committed(shape: TreeSpec, tree: Tree, given: dict[str, Any]) -> Any:
    no_draw = given["draws"] == VOCAB - 1
    # Most rows draw the token of a child, so that walks are long.
    row = jnp.arange(shape.rows, dtype=jnp.int32)[None, :, None]
    first = jnp.argmax((tree.parents[:, None, :] == row) & tree.valid[:, None], axis=-1)
    child = jnp.take_along_axis(tree.tokens, first.astype(jnp.int32), axis=1)
    draws = jnp.where(given["draws"] < VOCAB // 8, given["draws"], child)
    text = Text(given["tokens"], given["length"], given["finish"], given["last_positions"])
    ends = Ends(given["stop"], given["eos"], (1, 2, 3))
    return commit_text(tree_rows(tree, draws, no_draw), text, ends, shape.depth)


def _given(shape: TreeSpec, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def integers(low: int, high: int, *size: int) -> np.ndarray:
        return rng.integers(low, high, (BATCH, *size)).astype(np.int32)

    tokens, length = integers(0, VOCAB, CAPACITY), integers(100, 200)
    table = ngram_fill.fill(ngram.empty(BATCH, CAPACITY, SLOTS), jnp.asarray(tokens % 4), jnp.asarray(length - 8))
    candidates = []
    for width in shape.widths:
        drafted = np.argsort(rng.random((BATCH, 4)), axis=1)[:, :width].astype(np.int32)
        candidates.append((drafted, np.log(rng.uniform(0.1, 0.9, (BATCH, width))).astype(np.float32)))
    return {
        "tokens": tokens % 4,
        "length": length,
        "finish": (rng.random(BATCH) < 0.1).astype(np.int32),
        "last_positions": integers(-5, 90, VOCAB),
        "stop": length + integers(2, 40),
        "eos": np.where(rng.random((BATCH, 2)) < 0.2, 2, 0).astype(np.uint32),
        "draws": integers(0, VOCAB, shape.rows),
        "entries": table.entries,
        "inserted": table.inserted,
        "candidates": candidates,
        "draw": _draw(rng),
    }


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Arguments of `shortlist_edges`, two rows a text. No sum of weights is within 1e-4 of the share that a nucleus
    must reach, so no rounding moves an edge."""
    scores = rng.normal(scale=3, size=(2 * BATCH, LISTED)).astype(np.float32)
    highest = scores.max(axis=1, keepdims=True)
    total = np.exp(scores.astype(np.float64) - highest).sum(axis=1, keepdims=True)
    settings = rng.integers(1, 9, (BATCH, 1)), rng.integers(0, 100, (BATCH, 1)) * (rng.random((BATCH, 1)) < 0.7)
    keep, top_k = (values.astype(np.int32) for values in settings)
    top_p = np.where(rng.random((BATCH, 1)) < 0.7, rng.uniform(0.1, 0.9, (BATCH, 1)), 1).astype(np.float32)
    return scores, highest, keep, top_k, top_p, np.broadcast_to(total / LISTED, scores.shape).astype(np.float32)
