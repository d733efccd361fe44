"""Prefill attention on NVIDIA GPUs by tokamax: its Mosaic GPU kernel for compute capability 9, its Triton kernel for 8.

Both kernels walk the blocks between the least begin and the greatest end of a tile of rows, independent of the
capacity. Slots past the rows' own must be finite, because the kernels multiply them by zero. The Triton kernel scales
the queries first, which rounds them once.

`served_by` decides which kernel is compiled, and the attached device has no influence. tokamax' operation for Mosaic
GPU would query that device, so this file calls its kernel directly, which does not.
"""

from __future__ import annotations

import jax
import tokamax
from absl import flags
from tokamax._src.ops.attention.base import Mask
from tokamax._src.ops.attention.pallas_mosaic_gpu_kernel_sm90 import Config as ConfigSM90
from tokamax._src.ops.attention.pallas_mosaic_gpu_kernel_sm90 import flash_attention_kernel
from tokamax._src.ops.attention.pallas_triton import Config as ConfigTriton
from tokamax._src.ops.attention.pallas_triton import PallasTritonFlashAttention

from pallas_kernels.implementation import gpu
from pallas_kernels.prefill_attention.flat_cache_view import flat_cache_view, kv_ranges, layer_begins


def prefill_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    layer: int | jax.Array,
    lengths: jax.Array,
    window: int | None,
    scale: float,
) -> jax.Array:
    """`reference.prefill_attention` for the calls that `prefill_attention.served_by` accepts."""
    batch, rows, query_heads, head_dim = queries.shape
    group = query_heads // keys.shape[2]
    # tokamax sees the heads of all sequences as heads of one sequence: [rows, batch * query_heads, head_dim].
    heads = queries.swapaxes(0, 1).reshape(rows, batch * query_heads, head_dim)
    begins, ends = (
        layer_begins(keys, layer) + span.repeat(group, axis=1).reshape(batch * query_heads, rows)
        for span in kv_ranges(keys, lengths, rows, window)
    )
    arrays = heads, flat_cache_view(keys)[:, None], flat_cache_view(values)[:, None]
    attend = _triton if gpu().compute_capability[0] == 8 else _mosaic
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        mixed = attend(*arrays, begins, ends, scale)
    return mixed.reshape(rows, batch, query_heads, head_dim).swapaxes(0, 1)


def _mosaic(
    heads: jax.Array, keys: jax.Array, values: jax.Array, begins: jax.Array, ends: jax.Array, scale: float
) -> jax.Array:
    """Attention of rows [rows, heads, head_dim] over slots begins .. ends-1, int32 [heads, rows], of keys and values
    [slots, 1, head_dim]."""
    head_dim = heads.shape[2]
    # Larger heads get blocks of half the size, so that two stages of K/V fit the shared memory of Hopper.
    tile = ConfigSM90(block_q=64, block_kv=128 if head_dim <= 128 else 64, num_stages=2)
    return flash_attention_kernel(
        heads,
        keys,
        values,
        None,
        None,
        begins,
        ends,
        is_causal=False,
        logits_soft_cap=None,
        logits_scale=scale,
        out_dtype=heads.dtype,
        normalize_output=True,
        return_residuals=False,
        use_stable_softmax=True,
        rescale_threshold=1.0,
        config=tile,
    )[0]


def _triton(
    heads: jax.Array, keys: jax.Array, values: jax.Array, begins: jax.Array, ends: jax.Array, scale: float
) -> jax.Array:
    """`_mosaic` by the Triton kernel."""
    if not flags.FLAGS.is_parsed():
        # Without this mark, tokamax parses sys.argv to read its own settings and ends the process at an unknown flag.
        flags.FLAGS.mark_as_parsed()
    # Without given sizes, tokamax looks for tuned ones and logs a warning for every shape that has none.
    tile = ConfigTriton(block_q=128, block_k=64, num_warps=8, num_stages=2)
    attend = PallasTritonFlashAttention(config=tile)
    mask = Mask(k_start=begins, k_end=ends)
    # `served_by` has chosen the kernel, so tokamax need not find an attached device that it supports.
    with tokamax.config.cross_compile(True):
        return attend(heads, keys, values, logits_scale=scale, mask=mask)
