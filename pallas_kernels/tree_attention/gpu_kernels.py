"""The two Triton kernels of tree attention: one computes a split of the length, the other merges the splits.

The kernels keep scores as exponents of two (scaled by log2 e), because the hardware computes powers of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

LOWEST = float(jnp.finfo(jnp.float32).min)
LN_2 = math.log(2)


@dataclass(frozen=True)
class Problem:
    """The static sizes and options of a kernel.

    Attributes:
      rows, group, kv_heads, capacity: sizes of the call.
      pieces: (start, size) of each piece of the head's numbers.
      scale: factor of the scores, log2(e) included.
      splits: parts of the length.
      tile_rows, columns, own_columns: rows of a program, slots of the cache a step, and own rows a step.
      window: size of the sliding window: how many newest positions a row sees; None for all.
      block_size, table: slots a block, and entries of the table of blocks that rows see; None and 0: all slots.
      return_lse: whether the kernel also returns the logarithm of each softmax's denominator.
      float8_bits: whether the cache's uint8 are the bits of float8_e4m3fn, for GPUs that cannot convert float8.
    """

    rows: int
    group: int
    kv_heads: int
    capacity: int
    pieces: tuple[tuple[int, int], ...]
    scale: float
    splits: int
    tile_rows: int
    columns: int
    own_columns: int
    window: int | None
    float8_bits: bool
    block_size: int | None
    table: int
    return_lse: bool = False


def attend_split(p: Problem, names: tuple[str, ...], *refs: Any) -> None:
    """Program (row tile, split, batch * kv_heads): attends with a tile of rows over one split of the live prefix.

    `refs` are the inputs that `names` names, then the outputs. With one split the outputs are the result [batch, rows,
    query_heads, head_dim] and, under `return_lse`, the log-sum-exp [batch, rows, query_heads]. With several splits they
    are mix [batch, kv_heads, rows * group, splits, head_dim], and peak and total [batch, kv_heads, rows * group,
    splits].
    """
    inputs = dict(zip(names, refs, strict=False))
    outputs = refs[len(names) :]
    split = pl.program_id(1)
    batch, head = pl.program_id(2) // p.kv_heads, pl.program_id(2) % p.kv_heads
    member = pl.program_id(0) * p.tile_rows + jnp.arange(p.tile_rows, dtype=jnp.int32)
    # Past the last row, a tile computes and writes the last row again.
    member = jnp.minimum(member, p.rows * p.group - 1)
    row = member // p.group
    query_head = head * p.group + member % p.group
    queries = [inputs["queries"][batch, row[:, None], query_head[:, None], _span(piece)] for piece in p.pieces]
    layer, length = inputs["layer"][0], inputs["lengths"][batch]
    reach = None if p.window is None else inputs["positions"][batch, row] - p.window

    def fold(state, keys, values, visible, key_scale=None, value_scale=None):
        """Folds one block of columns into the running peak, normaliser and mix; visible None: every row sees every
        column."""
        peak, total, mix = state
        scores = jnp.zeros((), jnp.float32)
        for q, k in zip(queries, keys, strict=True):
            scores = scores + _dot(q, stored_numbers(k, p.float8_bits, q.dtype), 1)
        scores = scores * p.scale
        if key_scale is not None:
            scores = scores * key_scale[None, :]
        if visible is not None:
            scores = jnp.where(visible, scores, LOWEST)
        new_peak = jnp.maximum(peak, scores.max(axis=1))
        weights = jnp.exp2(scores - new_peak[:, None])
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        decay = jnp.exp2(peak - new_peak)
        total = total * decay + weights.sum(axis=1)
        if value_scale is not None:
            weights = weights * value_scale[None, :]
        weights = weights.astype(queries[0].dtype)
        mix = tuple(
            m * decay[:, None] + _dot(weights, stored_numbers(v, p.float8_bits, weights.dtype), 0)
            for m, v in zip(mix, values, strict=True)
        )
        return new_peak, total, mix

    def slots_of(name, slots, live):
        """Numbers of the slots, in pieces of [columns, size]; zero where a slot is not live. live None: all are."""
        if live is None:
            return [inputs[name][layer, batch, head, slots, pl.ds(*piece)] for piece in p.pieces]
        there = inputs[name]
        zero = jnp.zeros((), there.dtype)
        return [
            jnp.where(live[:, None], there[layer, batch, head, slots[:, None], _span(piece)], zero)
            for piece in p.pieces
        ]

    def per_slot(name, slots, live):
        if name not in inputs:
            return None
        numbers = inputs[name][layer, batch, head, slots]
        return numbers if live is None else jnp.where(live, numbers, 0)

    def prefix_block(index, state, whole):
        order = index * p.columns + jnp.arange(p.columns, dtype=jnp.int32)
        if p.block_size is not None:
            # A table entry names the block of its slots; an entry that names none reads slot 0 and is not live.
            entry = order // p.block_size
            block = inputs["blocks"][batch, head, jnp.minimum(entry, p.table - 1)]
            order = block * p.block_size + order % p.block_size
            live = (entry < p.table) & (block >= 0) & (order < length)
            slots, visible = jnp.where(live, order, 0), jnp.broadcast_to(live[None, :], (p.tile_rows, p.columns))
        elif whole:
            live, slots, visible = None, pl.ds(index * p.columns, p.columns), None
        else:
            # A block may reach past the cache. Without the minimum, the program reads out of bounds.
            live, slots = order < length, jnp.minimum(order, p.capacity - 1)
            visible = jnp.broadcast_to(live[None, :], (p.tile_rows, p.columns))
        keys, values = slots_of("keys", slots, live), slots_of("values", slots, live)
        if reach is not None:
            text = inputs["key_positions"][layer, batch, head, slots] if "key_positions" in inputs else order
            near = text[None, :] > reach[:, None]
            visible = near if visible is None else visible & near
        scales = per_slot("key_scales", slots, live), per_slot("value_scales", slots, live)
        return fold(state, keys, values, visible, *scales)

    def own_block(index, carry):
        state, sees_non_finite = carry
        order = index * p.own_columns + jnp.arange(p.own_columns, dtype=jnp.int32)
        other = jnp.minimum(order, p.rows - 1)
        visible = inputs["mask"][batch, row[:, None], other[None, :]] & (order < p.rows)[None, :]
        if reach is not None:
            visible = visible & (inputs["positions"][batch, other][None, :] > reach[:, None])
        keys = [inputs["own_keys"][batch, other[:, None], head, _span(piece)] for piece in p.pieces]
        values = [inputs["own_values"][batch, other[:, None], head, _span(piece)] for piece in p.pieces]
        # A tree row that overflowed must spoil the rows that see it and no other. Without these masks it spoils every
        # row, since 0 * NaN is NaN.
        finite = [jnp.abs(value.astype(jnp.float32)) < jnp.inf for value in values]
        non_finite = jnp.zeros((p.own_columns,), jnp.int32)
        for good in finite:
            non_finite = jnp.maximum(non_finite, jnp.where(good, 0, 1).max(axis=1))
        values = [jnp.where(good, value, 0) for good, value in zip(finite, values, strict=True)]
        sees_non_finite = jnp.maximum(sees_non_finite, jnp.where(visible, non_finite[None, :], 0).max(axis=1))
        return fold(state, keys, values, visible), sees_non_finite

    state = (
        jnp.full((p.tile_rows,), LOWEST, jnp.float32),
        jnp.zeros((p.tile_rows,), jnp.float32),
        tuple(jnp.zeros((p.tile_rows, size), jnp.float32) for _, size in p.pieces),
    )
    first = inputs["begins"][batch] // p.columns
    blocks = pl.cdiv(length if p.block_size is None else p.table * p.block_size, p.columns)
    each = pl.cdiv(jnp.maximum(blocks - first, 0), p.splits)
    begin = first + split * each
    end = jnp.minimum(begin + each, blocks)
    ragged = begin if p.block_size is not None else jnp.maximum(jnp.minimum(end, length // p.columns), begin)
    state = lax.fori_loop(begin, ragged, lambda index, s: prefix_block(index, s, True), state)
    state = lax.fori_loop(ragged, end, lambda index, s: prefix_block(index, s, False), state)
    # The last split has the fewest blocks, so it also folds in the rows' own block.
    own = jnp.where(split == p.splits - 1, inputs["own_blocks"][batch, pl.program_id(0)], jnp.int32(0))
    sees_non_finite = jnp.zeros((p.tile_rows,), jnp.int32)
    (peak, total, mix), sees_non_finite = lax.fori_loop(jnp.int32(0), own, own_block, (state, sees_non_finite))
    mix = [jnp.where(sees_non_finite[:, None] > 0, jnp.nan, m) for m in mix]
    if p.splits == 1:
        for piece, m in zip(p.pieces, mix, strict=True):
            mixed = (m / total[:, None]).astype(outputs[0].dtype)
            outputs[0][batch, row[:, None], query_head[:, None], _span(piece)] = mixed
        if p.return_lse:
            outputs[1][batch, row, query_head] = (peak + jnp.log2(total)) * LN_2
        return
    for piece, m in zip(p.pieces, mix, strict=True):
        outputs[0][batch, head, member[:, None], split, _span(piece)] = m
    outputs[1][batch, head, member, split] = peak
    outputs[2][batch, head, member, split] = total


def merge_splits(p: Problem, mix_ref: Any, peak_ref: Any, total_ref: Any, out_ref: Any, lse_ref: Any = None) -> None:
    """Program (row of the group, batch * kv_heads): merges the splits of one row, weighted by their log-sum-exp."""
    member = pl.program_id(0)
    batch, head = pl.program_id(1) // p.kv_heads, pl.program_id(1) % p.kv_heads
    order = jnp.arange(pl.next_power_of_2(p.splits), dtype=jnp.int32)
    split = jnp.minimum(order, p.splits - 1)
    peak = peak_ref[batch, head, member, split]
    weight = jnp.where(order < p.splits, jnp.exp2(peak - peak.max()), 0.0)
    total = (weight * total_ref[batch, head, member, split]).sum()
    if lse_ref is not None:
        lse_ref[batch, member // p.group, head * p.group + member % p.group] = (peak.max() + jnp.log2(total)) * LN_2
    for start, size in p.pieces:
        mix = mix_ref[batch, head, member, split[:, None], _span((start, size))]
        merged = (mix * weight[:, None]).sum(axis=0) / total
        at = (batch, member // p.group, head * p.group + member % p.group, pl.ds(start, size))
        out_ref[at] = merged.astype(out_ref.dtype)


def _span(piece: tuple[int, int]) -> jax.Array:
    return (piece[0] + jnp.arange(piece[1], dtype=jnp.int32))[None, :]


def stored_numbers(block: jax.Array, float8_bits: bool, dtype: jnp.dtype) -> jax.Array:
    """A block of the cache, or of own rows, in the dtype of the multiplication."""
    if not float8_bits or block.dtype != jnp.uint8:
        return block.astype(dtype)
    # The bits of a float8_e4m3fn, shifted to their places in float16, are the number divided by 2^8, because the
    # exponent biases are 7 and 15.
    bits = block.astype(jnp.int32)
    half = lax.bitcast_convert_type((((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).astype(jnp.int16), jnp.float16)
    number = half.astype(jnp.float32) * 256.0
    return jnp.where((bits & 0x7F) == 0x7F, jnp.nan, number).astype(dtype)


def _dot(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """The product summed over axis 1 of `left` and `axis` of `right`, in float32 throughout: no TF32 for float32
    models."""
    return lax.dot_general(
        left,
        right,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
