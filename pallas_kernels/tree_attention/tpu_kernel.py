"""The Mosaic kernel of tree attention: one step of a program's walk over the prefix and the rows' own block.

The kernel keeps scores as exponents of two (scaled by log2 e), because the hardware computes powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

LANES = 128
LOWEST = float(jnp.finfo(jnp.float32).min)
LN_2 = math.log(2)
# The kernel unrolls heads until their rows add up to this many, so that the scheduler can interleave the arithmetic of
# one basic block.
UNROLLED = 64


@dataclass(frozen=True)
class Problem:
    """The static sizes and options of a kernel.

    Attributes:
      heads: KV heads of a program.
      columns: slots of the cache a step.
      scale: factor of the scores, log2(e) included.
      window: size of the sliding window: how many newest positions a row sees; None for all.
      slots_minor: blocks of the cache are [head_dim, slots] instead of [slots, head_dim].
    """

    heads: int
    columns: int
    scale: float
    window: int | None
    slots_minor: bool


def attend(p: Problem, names: tuple[str, ...], *refs: Any) -> None:
    """Step j of program (sequence, block of heads, row tile): prefix blocks first, then blocks of own rows.

    `refs` are the scalars layer, lengths, first block, end of the blocks, prefix steps, and own blocks that a tile
    sees; the inputs that `names` names; the output [heads, rows, head_dim]; the log-sum-exp [heads, rows, lanes] if the
    caller wants it; and the running peak, normaliser and mix.
    """
    _, lengths_ref, begins_ref, blocks_ref, steps_ref, own_ref = refs[:6]
    inputs = dict(zip(names, refs[6:], strict=False))
    out_ref, *lse_ref, peak_ref, total_ref, mix_ref = refs[6 + len(names) :]
    sequence, step = pl.program_id(0), pl.program_id(3)
    length = lengths_ref[sequence]
    block = begins_ref[sequence] + step
    in_prefix = (step < steps_ref[0]) & (block < blocks_ref[sequence])
    whole = (block + 1) * p.columns <= length

    def fold(head, keys, values, visible, key_scale=None, value_scale=None, slots_minor=False):
        """Folds one block of columns into a head's running numbers; visible None: every row sees every column."""
        queries = inputs["queries"][head]
        # Mosaic rewrites a product with a single column as a broadcast, which cannot turn bfloat16 into float32.
        narrow = jnp.dtype(jnp.float32) if keys.shape[0] == 1 else queries.dtype
        scores = _dot(queries.astype(narrow), keys.astype(narrow), 0 if slots_minor else 1) * p.scale
        if key_scale is not None:
            scores = scores * key_scale
        if visible is not None:
            scores = jnp.where(visible, scores, LOWEST)
        peak = peak_ref[head][:, :1]
        new_peak = jnp.maximum(peak, scores.max(axis=1, keepdims=True))
        weights = jnp.exp2(scores - new_peak)
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        decay = jnp.exp2(peak - new_peak)
        total = total_ref[head][:, :1] * decay + weights.sum(axis=1, keepdims=True)
        if value_scale is not None:
            weights = weights * value_scale
        mix = _dot(weights.astype(narrow), values.astype(narrow), 1 if slots_minor else 0)
        mix_ref[head] = mix_ref[head] * decay + mix
        peak_ref[head] = jnp.broadcast_to(new_peak, peak_ref.shape[1:])
        total_ref[head] = jnp.broadcast_to(total, total_ref.shape[1:])

    def prefix_block(whole):
        def of_head(head):
            tile = inputs["queries"].shape[1]
            keys, values = inputs["keys"][head], inputs["values"][head]
            scales = [_line(inputs, name, head) for name in ("key_scales", "value_scales")]
            visible = None
            if not whole or p.window is not None:
                slots = block * p.columns + lax.broadcasted_iota(jnp.int32, (1, p.columns), 1)
                live = slots < length
            if not whole:
                visible = jnp.broadcast_to(live, (tile, p.columns))
                # Without this mask, a NaN in a slot that is not live reaches every output, since 0 * NaN is NaN.
                axis = 1 if p.slots_minor else 0
                order = block * p.columns + lax.broadcasted_iota(jnp.int32, values.shape, axis)
                values = jnp.where(order < length, values.astype(jnp.float32), 0.0).astype(values.dtype)
                scales = [None if scale is None else jnp.where(live, scale, 0.0) for scale in scales]
            if p.window is not None:
                text = slots if "key_positions" not in inputs else _line(inputs, "key_positions", head)
                near = text > inputs["reach"][...]
                visible = near if visible is None else visible & near
            fold(head, keys, values, visible, *scales, slots_minor=p.slots_minor)

        _each_head(p.heads, out_ref.shape[1], of_head)

    @pl.when(step == 0)
    def _():
        peak_ref[...] = jnp.full(peak_ref.shape, LOWEST, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        mix_ref[...] = jnp.zeros(mix_ref.shape, jnp.float32)

    @pl.when(in_prefix & whole)
    def _():
        prefix_block(True)

    @pl.when(in_prefix & ~whole)
    def _():
        prefix_block(False)

    own_step = step - steps_ref[0]

    @pl.when((own_step >= 0) & (own_step < own_ref[sequence, pl.program_id(2)]))
    def _():
        visible = inputs["mask"][...].astype(jnp.int32) != 0
        if p.window is not None:
            visible = visible & (inputs["own_positions"][...] > inputs["reach"][...])

        def of_head(head):
            values = inputs["own_values"][head].astype(jnp.float32)
            # A tree row that overflowed must spoil the rows that see it and no other. Without these masks it spoils
            # every row, since 0 * NaN is NaN.
            finite = jnp.abs(values) < jnp.inf
            non_finite = jnp.where(finite, 0.0, 1.0)
            sees_non_finite = _dot(jnp.where(visible, 1.0, 0.0), non_finite, 0).max(axis=1, keepdims=True) > 0
            fold(head, inputs["own_keys"][head], jnp.where(finite, values, 0.0), visible)
            mix_ref[head] = jnp.where(sees_non_finite, jnp.nan, mix_ref[head])

        _each_head(p.heads, out_ref.shape[1], of_head)

    @pl.when(step == pl.num_programs(3) - 1)
    def _():
        def of_head(head):
            out_ref[head] = (mix_ref[head] / total_ref[head][:, :1]).astype(out_ref.dtype)
            if lse_ref:
                lse_ref[0][head] = (peak_ref[head] + jnp.log2(total_ref[head])) * LN_2

        _each_head(p.heads, out_ref.shape[1], of_head)


def _each_head(heads: int, rows: int, of_head: Callable[[Any], None]) -> None:
    unrolled = next(n for n in range(min(heads, max(UNROLLED // rows, 1)), 0, -1) if heads % n == 0)

    def several(index, carry):
        for offset in range(unrolled):
            of_head(index * unrolled + offset)
        return carry

    if heads == unrolled:
        several(0, 0)
    else:
        lax.fori_loop(0, heads // unrolled, several, 0)


def _line(inputs: dict[str, Any], name: str, head: Any) -> jax.Array | None:
    """The input with one number a slot, [1, columns]; None without that input."""
    return inputs[name][pl.ds(head, 1), :] if name in inputs else None


def _dot(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """The product summed over axis 1 of `left` and `axis` of `right`, in float32, without rounding float32 operands."""
    return lax.dot_general(
        left,
        right,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )
