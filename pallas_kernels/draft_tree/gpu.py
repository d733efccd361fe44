"""The tree of drafts for NVIDIA GPUs, by Pallas' Triton backend: one program per text.

The program writes the slots' scores, tokens and parents to memory and reads them again in the order of the tree's rows,
because Triton cannot index an array in registers.

Limits: 512 slots, 128 rows, one key, a power of two of entries per set of the table, 128 at most.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.draft_tree import Candidates, Chains, DraftTree, Slots
from pallas_kernels.gpu_memory import store_row, synchronise
from pallas_kernels.implementation import interpret
from pallas_kernels.ngram_table.sets import COUNT, FIELDS, FIRST, LAST

_WARPS = 8
_TOGETHER = 32  # slots with which a program compares every slot at a time


def draft_tree(slots: Slots, root: jax.Array, candidates: Candidates | None, chains: Chains | None) -> DraftTree:
    """As `pallas_kernels.draft_tree.draft_tree`."""
    batch, shape = root.shape[0], jax.ShapeDtypeStruct
    given = [root, *(candidates or ()), *(chains or ())]
    row, flags = shape((batch, slots.rows), jnp.int32), shape((batch, slots.rows), jnp.bool_)
    slot = shape((batch, slots.slots), jnp.int32)
    sees, paths = shape((*row.shape, slots.rows), jnp.bool_), shape((*row.shape, slots.depth), jnp.int32)
    tree = [row, row, row, flags, flags, sees, shape((batch,), jnp.int32), paths]  # the fields of DraftTree
    memory = [shape(slot.shape, jnp.float32), slot, slot, slot, row]
    results = pl.pallas_call(
        partial(_text, slots),
        grid=(batch,),
        out_shape=[*tree, *memory],
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret(),
        name="draft_tree",
        cost_estimate=pl.CostEstimate(
            flops=3 * batch * slots.slots**2, transcendentals=0, bytes_accessed=64 * batch * slots.slots
        ),
    )(*given)
    return DraftTree(*results[: len(tree)])


def _text(slots: Slots, *refs: Any) -> None:
    """Program (text): fills the slots, ranks them and writes the rows."""
    root_ref, rest = refs[0], refs[1:]
    candidates, rest = (Candidates(*rest[:3]), rest[3:]) if slots.candidates else (None, rest)
    chains, rest = (Chains(*rest[:2]), rest[2:]) if slots.k else (None, rest)
    # The slots' scores, tokens, parents and rows, and the rows' slots.
    tree, memory = DraftTree(*rest[: len(DraftTree._fields)]), rest[len(DraftTree._fields) :]
    score_ref, token_ref, parent_ref, row_ref, chosen_ref = memory
    text = pl.program_id(0)
    score_ref[text, 0], token_ref[text, 0], parent_ref[text, 0] = jnp.float32(2), root_ref[text], jnp.int32(0)

    def fill(first: int, number: int, tokens: jax.Array, score: jax.Array, parents: jax.Array) -> None:
        place = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        for ref, values in ((token_ref, tokens), (score_ref, score), (parent_ref, parents)):
            store_row(ref, text, first + place, values, place < number)

    nodes, before = [], 0
    for _, number in slots.candidates:
        assert candidates is not None
        nodes.append(_level(candidates, before, number, text))
        before += number
    if chains is not None:
        if slots.key_depth == 0:
            _add_chains(slots, chains, root_ref[text], None, nodes, text, fill)
        else:
            assert candidates is not None
            _add_chains(slots, chains, candidates.tokens[text, 0], candidates.score[text, 0], nodes, text, fill)
    above = 0
    for (first, number), (tokens, score, parents) in zip(slots.candidates, nodes, strict=True):
        fill(first, number, tokens, score, above + parents)
        above = first
    synchronise()
    _rank(slots, score_ref, row_ref, chosen_ref, text)
    synchronise()
    _write_rows(slots, tree, memory, text)


def _level(candidates: Candidates, before: int, number: int, text: jax.Array) -> Candidates:
    """The candidates of a depth, after `before` others, in a power of two of places: no node past the last."""
    place = jnp.arange(pl.next_power_of_2(max(number, 2)), dtype=jnp.int32)
    at = before + jnp.minimum(place, number - 1)
    score = jnp.where(place < number, candidates.score[text, at], jnp.float32(-1))
    return Candidates(candidates.tokens[text, at], score, candidates.parents[text, at])


def _add_chains(
    slots: Slots,
    chains: Chains,
    key: jax.Array,
    key_score: jax.Array | None,
    nodes: list[Candidates],
    text: jax.Array,
    fill: Any,
) -> None:
    """Looks the key's chains up, fills their slots and raises the scores of the candidates that they repeat; the key's
    score is None for the root, whose probability is 1."""
    continuations, counts, total = _lookup(chains.entries, key, slots.k, len(slots.chains), text)
    chain = jnp.arange(counts.shape[0], dtype=jnp.int32)
    place_of_key = 0 if slots.key_depth == 0 else slots.candidates[0][0]
    live = counts > 0
    if key_score is not None:
        live &= key_score >= 0
    unit = 1 / (total + 1).astype(jnp.float32) * chains.scale[text]
    same, in_heads, node = live[:, None] & live[None, :], live, jnp.zeros_like(chain)
    parent = jnp.full_like(chain, place_of_key)
    for (first, depth), tokens in zip(slots.chains, continuations, strict=True):
        same &= tokens[:, None] == tokens[None, :]
        through = jnp.sum(jnp.where(same, counts[None, :], 0), axis=1, dtype=jnp.int32)
        owner = jnp.min(jnp.where(same, chain[None, :], slots.k), axis=1)
        score = jnp.minimum(through.astype(jnp.float32) * unit, jnp.float32(1))
        score = score if key_score is None else key_score * score
        home, owned = first + owner, live & (owner == chain)
        if depth <= len(nodes):
            level = nodes[depth - 1]
            here = (level.parents[None, :] == node[:, None]) & (level.tokens[None, :] == tokens[:, None])
            here &= (level.score >= 0)[None, :] & in_heads[:, None]
            place = jnp.arange(level.tokens.shape[0], dtype=jnp.int32)
            node = jnp.max(jnp.where(here, place[None, :], -1), axis=1)
            in_heads = node >= 0
            home = jnp.where(in_heads, slots.candidates[depth - 1][0] + node, home)
            raised = jnp.max(jnp.where(here, score[:, None], jnp.float32(-1)), axis=0)
            nodes[depth - 1] = level._replace(score=jnp.maximum(level.score, raised))
            owned &= ~in_heads
        fill(first, slots.k, tokens, jnp.where(owned, score, jnp.float32(-1)), parent)
        parent = home


def _lookup(
    entries: Any, key: jax.Array, k: int, depth: int, text: jax.Array
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The key's k most frequent continuations in a power of two of places: the first `depth` tokens of each, their
    counts (0: none), and the sum of all counts."""
    size, home = entries.shape[2] // FIELDS, key % entries.shape[1]
    fields = [entries[text, home, pl.ds(field * size, size)] for field in range(FIRST + 1 + depth)]
    own = fields[FIRST] == key
    count, last = (jnp.where(own, fields[field], 0) for field in (COUNT, LAST))
    ahead = (count[None, :] > count[:, None]) | ((count[None, :] == count[:, None]) & (last[None, :] > last[:, None]))
    rank = jnp.sum(ahead.astype(jnp.int32), axis=1, dtype=jnp.int32)
    chain = jnp.arange(pl.next_power_of_2(max(k, 2)), dtype=jnp.int32)
    picked = (rank[None, :] == chain[:, None]) & (count > 0)[None, :] & (chain < k)[:, None]

    def taken(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(picked, values[None, :], 0), axis=1, dtype=jnp.int32)

    return [taken(field) for field in fields[FIRST + 1 :]], taken(count), jnp.sum(count, dtype=jnp.int32)


def _rank(slots: Slots, score_ref: Any, row_ref: Any, chosen_ref: Any, text: jax.Array) -> None:
    """Writes each slot's row, and each row's slot: the highest scores first, ties to the lower slot."""
    slot = jnp.arange(pl.next_power_of_2(slots.slots), dtype=jnp.int32)
    rank = slot
    if slots.rows < slots.slots:
        score = score_ref[text, jnp.minimum(slot, slots.slots - 1)]
        rank = jnp.zeros_like(slot)
        for start in range(0, slots.slots, _TOGETHER):
            other = start + jnp.arange(_TOGETHER, dtype=jnp.int32)
            theirs = score_ref[text, jnp.minimum(other, slots.slots - 1)]
            ahead = theirs[None, :] > score[:, None]
            ahead |= (theirs[None, :] == score[:, None]) & (other[None, :] < slot[:, None])
            ahead &= (other < slots.slots)[None, :]
            rank += jnp.sum(ahead.astype(jnp.int32), axis=1, dtype=jnp.int32)
    store_row(row_ref, text, slot, rank, slot < slots.slots)
    store_row(chosen_ref, text, rank, slot, slot < slots.slots)


def _write_rows(slots: Slots, tree: DraftTree, memory: tuple[Any, ...], text: jax.Array) -> None:
    score_ref, token_ref, parent_ref, row_ref, chosen_ref = memory
    # Past the last row, the program computes and writes the last row again.
    row = jnp.minimum(jnp.arange(pl.next_power_of_2(max(slots.rows, 2)), dtype=jnp.int32), slots.rows - 1)
    slot = chosen_ref[text, row]
    valid = score_ref[text, slot] >= 0
    depth, by_ngram = jnp.zeros_like(row), jnp.zeros_like(valid)
    for first, _ in slots.candidates:
        depth += jnp.where(slot >= first, 1, 0)
    for first, at in slots.chains:
        if at > len(slots.candidates):
            depth += jnp.where(slot >= first, 1, 0)
        by_ngram |= (slot >= first) & (slot < first + slots.k)
    depth = jnp.where(valid, depth, 0)
    tree.tokens[text, row] = jnp.where(valid, token_ref[text, slot], 0)
    tree.parents[text, row] = jnp.where(valid, row_ref[text, parent_ref[text, slot]], 0)
    tree.depths[text, row] = depth
    tree.valid[text, row] = valid
    tree.by_ngram[text, row] = by_ngram & valid
    tree.deepest[text] = jnp.max(depth)
    synchronise()
    ancestor, seen, tokens = row, row[:, None] == row[None, :], []
    for _ in range(slots.depth):
        tokens.append(tree.tokens[text, ancestor])
        ancestor = tree.parents[text, ancestor]
        seen |= (ancestor[:, None] == row[None, :]) & valid[:, None]
    tree.mask[text, row[:, None], row[None, :]] = seen
    for level in range(slots.depth):
        there = [jnp.where(depth - up == level + 1, token, 0) for up, token in enumerate(tokens)]
        tree.path_tokens[text, row, level] = sum(there)
