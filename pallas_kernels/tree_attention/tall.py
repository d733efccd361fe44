"""Tree attention of many rows on NVIDIA Hopper: tokamax' kernel walks the whole blocks of the prefix, ours the rest.

From about 128 rows a KV head (query group included) attention is bound by arithmetic there. tokamax' Mosaic GPU kernel
has one warpgroup multiply while another computes powers; a Triton kernel cannot. It has no splits: here every split of
the length gets copies of the rows, whose span is that split, and the results are merged by their log-sum-exp. It
multiplies slots past a span's end by zero, which NaN survives; so it gets whole blocks of live slots only, and the
Triton kernel folds in the last slots and the rows' own block.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.implementation import gpu, interpret
from pallas_kernels.prefill_attention.flat_cache_view import flat_cache_view, layer_begins, numbered

BLOCK = 128  # slots
TILE = 128  # rows of a program: two warpgroups of 64
LOWEST = float(jnp.finfo(jnp.float32).min)
Parts = tuple[jax.Array, jax.Array, jax.Array]


def serves(rows: int, queries: jax.Array, keys: jax.Array) -> bool:
    """Whether `rows` rows a KV head over such a cache, all of whose slots they see, run here."""
    if interpret() or gpu().compute_capability[0] != 9 or rows < TILE:
        return False
    if queries.dtype not in (jnp.bfloat16, jnp.float16) or keys.dtype != queries.dtype:
        return False
    if queries.shape[3] % 16 or queries.shape[3] > 128 or keys.shape[3] % BLOCK or not numbered(keys):
        return False
    try:
        import_module("pallas_kernels.prefill_attention.gpu")  # it imports tokamax
    except ImportError:
        return False
    return True


def tall_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    layer: int | jax.Array,
    lengths: jax.Array,
    scale: float,
    rest: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    walk: Callable[..., Parts] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The result of `reference.tree_attention` and its log-sum-exp.

    Args:
      queries, keys, values, layer, lengths, scale: as there.
      rest: attends with all rows over their own block and the slots from `begins` on, int32 [batch]; result and
        log-sum-exp [batch, rows, query_heads].
      walk: `walk_ranges`, or its definition.
    """
    batch, rows, query_heads, head_dim = queries.shape
    kv_heads = keys.shape[2]
    group, heads = query_heads // kv_heads, batch * kv_heads
    tall = pl.cdiv(rows * group, TILE) * TILE
    splits = max(1, min(gpu().multiprocessors // (heads * (tall // TILE)), keys.shape[3] // BLOCK))
    complete = lengths // BLOCK * BLOCK
    # [tall, heads, head_dim]; past the last row, a tile computes the last row again.
    members = queries.reshape(batch, rows, kv_heads, group, head_dim).transpose(1, 3, 0, 2, 4)
    members = members.reshape(rows * group, heads, head_dim)
    copies = jnp.tile(jnp.pad(members, ((0, tall - rows * group), (0, 0), (0, 0)), mode="edge"), (splits, 1, 1))
    begins, ends = _spans(keys, layer, complete, splits, tall)
    mix, peak, total = (walk or walk_ranges)(
        copies, flat_cache_view(keys), flat_cache_view(values), begins, ends, scale
    )
    mix = mix.reshape(splits, tall, heads, head_dim)[:, : rows * group]
    peak, total = (x.reshape(heads, splits, tall)[:, :, : rows * group].transpose(1, 2, 0) for x in (peak, total))
    out, lse = rest(complete)

    def as_members(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32).reshape(batch, rows, kv_heads, group, -1).transpose(1, 3, 0, 2, 4)
        return x.reshape(rows * group, heads, -1)

    out, lse = as_members(out), as_members(lse)[..., 0]
    # A row that sees nothing has a log-sum-exp of -inf and a meaningless result.
    out = jnp.where(lse[..., None] == -jnp.inf, 0.0, out)
    highest = jnp.maximum(jnp.maximum(peak.max(axis=0), lse), LOWEST)
    # A split without slots has a peak of -inf and adds nothing.
    weight, of_rest = jnp.exp(peak - highest[None]), jnp.exp(lse - highest)
    total = (weight * total).sum(axis=0) + of_rest
    mixed = ((weight[..., None] * mix).sum(axis=0) + of_rest[..., None] * out) / total[..., None]

    def back(x: jax.Array) -> jax.Array:
        x = x.reshape(rows, group, batch, kv_heads, -1).transpose(2, 0, 3, 1, 4)
        return x.reshape(batch, rows, query_heads, -1)

    return back(mixed).astype(queries.dtype), back(highest + jnp.log(total))[..., 0]


def _spans(
    stack: jax.Array, layer: int | jax.Array, complete: jax.Array, splits: int, tall: int
) -> tuple[jax.Array, jax.Array]:
    """First slot of `flat_cache_view` that each row sees and the one past the last, int32 [heads, splits * tall] each:
    whole blocks, as evenly split as they can be."""
    _, batch, kv_heads, capacity, _ = stack.shape
    each = pl.cdiv(complete // BLOCK, splits) * BLOCK
    begin = jnp.minimum(jnp.arange(splits, dtype=jnp.int32)[None] * each[:, None], complete[:, None])
    end = jnp.minimum(begin + each[:, None], complete[:, None])
    base = jnp.arange(batch * kv_heads, dtype=jnp.int32) * capacity + layer_begins(stack, layer)

    def spread(x: jax.Array) -> jax.Array:
        return base[:, None] + x.repeat(kv_heads, axis=0).repeat(tall, axis=1)

    return spread(begin), spread(end)


def walk_ranges(
    queries: jax.Array, keys: jax.Array, values: jax.Array, begins: jax.Array, ends: jax.Array, scale: float
) -> Parts:
    """Attention of rows [rows, heads, head_dim] over slots begins .. ends-1, int32 [heads, rows], of keys and values
    [slots, head_dim].

    Returns the sums of values under weights relative to the peak, float32 [rows, heads, head_dim], and peak and sum of
    weights, float32 [heads, rows].
    """
    from tokamax._src.ops.attention.pallas_mosaic_gpu_kernel_sm90 import Config, flash_attention_kernel

    options: dict[str, Any] = {"is_causal": False, "logits_soft_cap": None, "logits_scale": scale}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        mix, parts = flash_attention_kernel(
            queries,
            keys[:, None],
            values[:, None],
            None,
            None,
            begins,
            ends,
            **options,
            out_dtype=jnp.dtype(jnp.float32),
            normalize_output=False,
            return_residuals=True,
            use_stable_softmax=True,
            rescale_threshold=1.0,
            config=Config(block_q=TILE // 2, block_kv=BLOCK, num_stages=2),
        )
    assert parts is not None
    return mix, parts[0], parts[1]
