"""The end of an iteration for NVIDIA GPUs, by Pallas' Triton backend: one program per text.

Limits: 128 tree rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.commit_text.rows import Acceptance, Committed, Ends, Text, TreeRows
from pallas_kernels.gpu_memory import store_row, synchronise
from pallas_kernels.implementation import interpret


def commit_text(tree: TreeRows, text: Text, ends: Ends, depth: int) -> Committed:
    """As `pallas_kernels.commit_text.commit_text`; the text's arrays are aliased, except its length, which the commit
    to the cache reads too."""
    batch, rows = tree.tokens.shape
    given = [*tree, text.length, ends.stop_length, ends.eos, text.tokens, text.last_positions, text.finish]
    shape = jax.ShapeDtypeStruct
    along, one = shape((batch, depth + 1), jnp.int32), shape((batch,), jnp.int32)
    kept = [shape(x.shape, jnp.int32) for x in given[-3:]]
    results = pl.pallas_call(
        partial(_text, depth, ends.reasons),
        grid=(batch,),
        out_shape=[*kept, along, along, *[one] * 4],
        input_output_aliases={len(given) - 3 + i: i for i in range(3)},
        compiler_params=plgpu.CompilerParams(num_warps=1 if rows <= 16 else 8, num_stages=1),
        interpret=interpret(),
        name="commit_text",
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * rows * rows, transcendentals=0, bytes_accessed=batch * rows * (rows + 32)
        ),
    )(*given)
    tokens, last_positions, finish, path, emitted, accepted, count, last, length = results
    return Committed(Acceptance(path, accepted, emitted), count, last, Text(tokens, length, finish, last_positions))


def _text(depth: int, reasons: tuple[int, int, int], *refs: Any) -> None:
    """Program (text): walks its tree and writes the tokens of the path."""
    tree, (length_ref, stop_ref, eos_ref, _, _, before_ref), outputs = TreeRows(*refs[:7]), refs[7:13], refs[13:]
    tokens_ref, last_positions_ref, finish_ref, path_ref, emitted_ref, *scalar_refs = outputs
    text, rows = pl.program_id(0), tree.tokens.shape[1]
    before, was = length_ref[text], before_ref[text]
    row = jnp.arange(pl.next_power_of_2(max(rows, 2)), dtype=jnp.int32)
    # Past the last row, the program reads the last row again and ignores it.
    at, inside = jnp.minimum(row, rows - 1), row < rows
    valid, depths = tree.valid[text, at] & inside, tree.depths[text, at]
    drawn = (tree.tokens[text, at] == tree.draws[text, tree.parents[text, at]]) | (row == 0)
    disagrees = ~(drawn & valid) & inside
    on_path = valid & (_count(tree.mask[text, at[:, None], at[None, :]] & disagrees[None, :]) == 0)
    accepted = _count(on_path) - 1

    level = jnp.arange(pl.next_power_of_2(max(depth + 1, 2)), dtype=jnp.int32)
    exists = level <= depth
    reached = on_path[None, :] & (depths[None, :] == jnp.minimum(level, accepted)[:, None])
    path = jnp.sum(jnp.where(reached, row[None, :], 0), axis=1, dtype=jnp.int32)
    emitted = jnp.where(level <= accepted, tree.draws[text, path], -1)

    never = depth + 1
    token = jnp.maximum(emitted, 0)
    word = eos_ref[text, jnp.minimum(token // 32, eos_ref.shape[1] - 1)]
    is_eos = (word >> (token % 32).astype(jnp.uint32)) & jnp.uint32(1) != 0
    end = jnp.min(jnp.where(is_eos & exists, level, never))
    nan = jnp.min(jnp.where(tree.no_draw[text, path] & exists, level, never))
    at_length, at_eos, without_draw = reasons
    remaining = stop_ref[text] - (before + 1)
    count = jnp.minimum(accepted + 1, remaining)
    finish = jnp.where(count >= remaining, jnp.int32(at_length), jnp.int32(0))
    finish, count = jnp.where(end < count, at_eos, finish), jnp.minimum(count, end + 1)
    finish, count = jnp.where(nan < count, without_draw, finish), jnp.minimum(count, nan)
    count, finish = jnp.where(was != 0, 0, count), jnp.where(was != 0, was, finish)

    position, counts = before + 1 + level, level < count
    # Of equal tokens the newest one decides: a GPU does not keep the order of two threads' writes.
    newer = (emitted[None, :] == emitted[:, None]) & (level[None, :] > level[:, None]) & counts[None, :]
    newest = counts & (_count(newer) == 0)
    last = jnp.sum(jnp.where(level == jnp.maximum(count - 1, 0), path, 0), dtype=jnp.int32)
    synchronise()  # Without it, a warp could write `finish` before another has read it.
    store_row(tokens_ref, text, position, emitted, exists)
    store_row(last_positions_ref, text, emitted, position, newest)
    store_row(path_ref, text, level, path, exists)
    store_row(emitted_ref, text, level, emitted, exists)
    scalars = finish, accepted, count, last, before + count
    for ref, value in zip((finish_ref, *scalar_refs), scalars, strict=True):
        ref[text] = value


def _count(marked: jax.Array) -> jax.Array:
    """The number of marked elements along the last axis."""
    return jnp.sum(marked.astype(jnp.int32), axis=-1, dtype=jnp.int32)
