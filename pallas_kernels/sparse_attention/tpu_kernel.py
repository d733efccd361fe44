"""The Mosaic kernel of sparse attention: it walks, for one sequence, the blocks that the table of each KV head names.

The kernel keeps scores as exponents of two (scaled by log2 e), because the hardware computes powers of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LOWEST = float(jnp.finfo(jnp.float32).min)
LN_2 = math.log(2)


@dataclass(frozen=True)
class Problem:
    """The static sizes and options of a kernel.

    Attributes:
      heads: KV heads.
      tiles, tile: tiles of a step, and slots of a tile, the least that the kernel fetches.
      block: slots of a block, at most a tile.
      steps: steps of a whole table.
      scale: factor of the scores, log2(e) included.
      window: whether rows see only slots from `oldest` on.
      slots_minor: the cache is [.., head_dim, slots] instead of [.., slots, head_dim].
    """

    heads: int
    tiles: int
    tile: int
    block: int
    steps: int
    scale: float
    window: bool
    slots_minor: bool


def attend(p: Problem, names: tuple[str, ...], *refs: Any) -> None:
    """Program (sequence): attends over the named blocks of every KV head, one step of tiles at a time, then over the
    rows' own block.

    `refs` are the scalars layer, lengths, tile starts (-1: fetch nothing), whether a step is whole, steps of a head and
    of a sequence, blocks; the inputs that `names` names; the output [heads, rows, head_dim]; the log-sum-exp
    [heads, rows, lanes] if the caller wants it; two buffers each for keys and values, their semaphores, and the running
    peak, normaliser and mix.
    """
    layer_ref, lengths_ref, starts_ref, whole_ref, taken_ref, total_ref, blocks_ref = refs[:7]
    inputs = dict(zip(names, refs[7:], strict=False))
    out_ref, *lse_ref, key_buffer, value_buffer, semaphores, peak_ref, norm_ref, mix_ref = refs[7 + len(names) :]
    sequence = pl.program_id(0)
    layer, length = layer_ref[0], lengths_ref[sequence]
    columns = p.tiles * p.tile

    def entry(head, step, index):
        return ((sequence * p.heads + head) * p.steps + step) * p.tiles + index

    def each_copy(head, step, side, do):
        """Calls `do` with the copy of each live tile of a step into side 0 or 1 of the buffers."""

        def of_tile(index, carry):
            start = starts_ref[entry(head, step, index)]

            @pl.when(start >= 0)
            def _():
                slots = pl.ds(pl.multiple_of(start, p.tile), p.tile)
                place = pl.ds(pl.multiple_of(index * p.tile, p.tile), p.tile)
                for which, (name, buffer) in enumerate((("keys", key_buffer), ("values", value_buffer))):
                    of_head = inputs[name].at[layer, sequence, head]
                    source = of_head.at[:, slots] if p.slots_minor else of_head.at[slots, :]
                    target = buffer.at[side, :, place] if p.slots_minor else buffer.at[side, place, :]
                    do(pltpu.make_async_copy(source, target, semaphores.at[side, which]))

            return carry

        lax.fori_loop(0, p.tiles, of_tile, 0)

    def fold(head, keys, values, visible, key_scale, value_scale, slots_minor):
        """Folds one block of columns into the running numbers; visible None: every row sees every column."""
        queries = inputs["queries"][head]
        scores = _dot(queries, keys.astype(queries.dtype), 0 if slots_minor else 1) * p.scale
        if key_scale is not None:
            scores = scores * key_scale
        if visible is not None:
            scores = jnp.where(visible, scores, LOWEST)
        peak = peak_ref[:, :1]
        new_peak = jnp.maximum(peak, scores.max(axis=1, keepdims=True))
        weights = jnp.exp2(scores - new_peak)
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        decay = jnp.exp2(peak - new_peak)
        norm = norm_ref[:, :1] * decay + weights.sum(axis=1, keepdims=True)
        if value_scale is not None:
            weights = weights * value_scale
        mix = _dot(weights.astype(queries.dtype), values.astype(queries.dtype), 1 if slots_minor else 0)
        mix_ref[...] = mix_ref[...] * decay + mix
        peak_ref[...] = jnp.broadcast_to(new_peak, peak_ref.shape)
        norm_ref[...] = jnp.broadcast_to(norm, norm_ref.shape)

    def line(name, head, step):
        """The input with one number a slot, [1, columns] for the slots of a step; None without that input."""
        if name not in inputs:
            return None
        return inputs[name][pl.ds(head, 1), pl.ds(pl.multiple_of(step * columns, columns), columns)]

    def live_values(values, slots, head, step):
        """The values with zeros for slots that are not live. Without the zeros, a NaN there reaches every output, since
        0 * NaN is NaN."""
        wide = values.astype(jnp.float32)
        if p.slots_minor:
            return jnp.where(slots >= 0, wide, 0.0)
        pieces = []
        for index in range(p.tiles):
            piece = wide[index * p.tile : (index + 1) * p.tile]
            start, first = starts_ref[entry(head, step, index)], blocks_ref[entry(head, step, index)] * p.block
            slot = start + lax.broadcasted_iota(jnp.int32, piece.shape, 0)
            there = (start >= 0) & (slot >= first) & (slot < jnp.minimum(first + p.block, length))
            pieces.append(jnp.where(there, piece, 0.0))
        return jnp.concatenate(pieces, axis=0)

    def prefix_step(head, step, side, whole):
        keys, values = key_buffer[side], value_buffer[side]
        scales = line("key_scales", head, step), line("value_scales", head, step)
        slots, visible = line("slots", head, step), None
        assert slots is not None
        if not whole:
            visible = slots >= 0
            values = live_values(values, slots, head, step)
        if p.window:
            near = slots >= inputs["oldest"][...]
            visible = near if visible is None else visible & near
        fold(head, keys, values, visible, *scales, p.slots_minor)

    def own_rows(head):
        visible = inputs["mask"][...].astype(jnp.int32) != 0
        if p.window:
            visible = visible & (inputs["own_positions"][...] >= inputs["oldest"][...])
        values = inputs["own_values"][head].astype(jnp.float32)
        # A tree row that overflowed must spoil the rows that see it and no other. Without these masks it spoils every
        # row, since 0 * NaN is NaN.
        finite = jnp.abs(values) < jnp.inf
        non_finite = jnp.where(finite, 0.0, 1.0)
        sees_non_finite = _dot(jnp.where(visible, 1.0, 0.0), non_finite, 0).max(axis=1, keepdims=True) > 0
        fold(head, inputs["own_keys"][head], jnp.where(finite, values, 0.0), visible, None, None, False)
        mixed = jnp.where(sees_non_finite, jnp.nan, mix_ref[...] / norm_ref[:, :1])
        out_ref[head] = mixed.astype(out_ref.dtype)
        if lse_ref:
            lse_ref[0][head] = (peak_ref[...] + jnp.log2(norm_ref[...])) * LN_2

    def walk(index, carry):
        head, step = carry
        side = index % 2
        last = step + 1 == taken_ref[sequence * p.heads + head]
        next_head, next_step = jnp.where(last, head + 1, head), jnp.where(last, 0, step + 1)

        @pl.when(index + 1 < total_ref[sequence])
        def _():
            each_copy(next_head, next_step, 1 - side, lambda copy: copy.start())

        @pl.when(step == 0)
        def _():
            peak_ref[...] = jnp.full(peak_ref.shape, LOWEST, jnp.float32)
            norm_ref[...] = jnp.zeros(norm_ref.shape, jnp.float32)
            mix_ref[...] = jnp.zeros(mix_ref.shape, jnp.float32)

        each_copy(head, step, side, lambda copy: copy.wait())
        whole = whole_ref[(sequence * p.heads + head) * p.steps + step] != 0

        @pl.when(whole)
        def _():
            prefix_step(head, step, side, True)

        @pl.when(~whole)
        def _():
            prefix_step(head, step, side, False)

        @pl.when(last)
        def _():
            own_rows(head)

        return next_head, next_step

    each_copy(0, 0, 0, lambda copy: copy.start())
    lax.fori_loop(0, total_ref[sequence], walk, (jnp.int32(0), jnp.int32(0)))


def _dot(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """The product summed over axis 1 of `left` and `axis` of `right`, in float32, without rounding float32 operands."""
    return lax.dot_general(
        left,
        right,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
