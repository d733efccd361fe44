"""Prefill attention on NVIDIA GPUs by tokamax: its Mosaic-GPU kernel for compute capability 9, Triton's for 8.

Both walk the blocks between the least begin and the greatest end of a tile of rows, whatever the capacity. Slots past
the rows' own must be finite: they are multiplied by zero. Triton's scales the queries before, which rounds them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import jax
import tokamax
from absl import flags
from tokamax._src import gpu_utils
from tokamax._src.ops.attention.base import Mask
from tokamax._src.ops.attention.pallas_mosaic_gpu import ConfigSM90, PallasMosaicGpuFlashAttention
from tokamax._src.ops.attention.pallas_triton import Config as ConfigTriton
from tokamax._src.ops.attention.pallas_triton import PallasTritonFlashAttention

from pallas_kernels.gpus import Gpu, attached
from pallas_kernels.implementation import gpu
from pallas_kernels.prefill_attention.one_sequence import layer_begins, one_sequence, spans


def prefill_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, *, layer: int, lengths: jax.Array, window: int | None
) -> jax.Array:
    """`reference.prefill_attention` of what `prefill_attention.served_by` lets through."""
    batch, rows, query_heads, head_dim = queries.shape
    group = query_heads // keys.shape[2]
    # As heads of one sequence: [rows, batch * query_heads, head_dim].
    heads = queries.swapaxes(0, 1).reshape(rows, batch * query_heads, head_dim)
    begins, ends = (
        layer_begins(keys, layer) + span.repeat(group, axis=1).reshape(batch * query_heads, rows)
        for span in spans(keys, lengths, rows, window)
    )
    target = gpu()
    # Named, or tokamax looks for tuned ones and warns of every shape that has none. Blocks of larger heads halve, so
    # that two stages of keys and values fit Hopper's shared memory.
    if target.compute_capability[0] == 8:
        tile = ConfigTriton(block_q=128, block_k=64, num_warps=8, num_stages=2)
        attend = PallasTritonFlashAttention(config=tile)
    else:
        tile = ConfigSM90(block_q=64, block_kv=128 if head_dim <= 128 else 64, num_stages=2)
        attend = PallasMosaicGpuFlashAttention(config=tile)
    with _compiling_for(target), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        mixed = attend(
            heads,
            one_sequence(keys)[:, None],
            one_sequence(values)[:, None],
            logits_scale=head_dim**-0.5,
            mask=Mask(k_start=begins, k_end=ends),
        )
    return mixed.reshape(rows, batch, query_heads, head_dim).swapaxes(0, 1)


@contextmanager
def _compiling_for(target: Gpu) -> Iterator[None]:
    """tokamax asks the attached device what it is; compiling for another, it hears of `target`."""
    if not flags.FLAGS.is_parsed():
        # Or tokamax parses sys.argv itself, for its own settings, and ends at whatever else it finds there.
        flags.FLAGS(["tokamax"])
    if jax.default_backend() == "gpu" and attached().compute_capability == target.compute_capability:
        yield
        return
    major, minor = target.compute_capability
    capability = patch.object(gpu_utils, "_compute_capability", lambda device=None: major + minor / 10)
    with tokamax.config.cross_compile(True), capability:
        yield
