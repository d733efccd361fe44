"""Attention of a prompt's next chunk over a cache that already contains it, by a library's kernels on accelerators."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.gpus import Gpu
from pallas_kernels.implementation import gpu as gpu_compiled_for
from pallas_kernels.implementation import implementation, interpret, say_once
from pallas_kernels.prefill_attention import reference
from pallas_kernels.prefill_attention.flat_cache_view import numbered

__all__ = ["prefill_attention", "served_by"]

LANES = 128  # rows of a tile, and the lanes of a TPU register


def prefill_attention(queries: jax.Array, keys: jax.Array, values: jax.Array, **options: Any) -> jax.Array:
    """`reference.prefill_attention`, by tokamax' kernels where tokamax is installed and its kernels take such a call.

    Elsewhere `tree_attention` computes it under a causal mask. The log "pallas_kernels" says which one runs, and why.
    """
    by, library = served_by(queries, keys, options.get("key_scales"))
    say_once(f"prefill_attention: {by}")
    if library is not None:
        used = {name: options[name] for name in ("layer", "lengths", "window")}
        scale = options.get("scale", queries.shape[-1] ** -0.5)
        return library.prefill_attention(queries, keys, values, **used, scale=scale)
    return reference.prefill_attention(queries, keys, values, **options)


def served_by(
    queries: jax.Array, keys: jax.Array, key_scales: jax.Array | None = None
) -> tuple[str, ModuleType | None]:
    """The implementation of a call, in words, and the module with the library's kernel if that kernel runs it."""
    target = implementation()
    library = _library(target, queries, keys, key_scales)
    if isinstance(library, ModuleType):
        return f"{target}, tokamax", library
    return f"tree_attention ({library})", None


def _library(target: str, queries: jax.Array, keys: jax.Array, key_scales: jax.Array | None) -> ModuleType | str:
    """The module with the kernel for a call, or the reason why there is none."""
    if target == "reference":
        return "no accelerator"
    rows, head_dim, capacity = queries.shape[1], queries.shape[3], keys.shape[3]
    kinds, head_dims = ((jnp.bfloat16,), (LANES, 2 * LANES)) if target == "tpu" else _of_gpu(gpu_compiled_for())
    if not kinds:
        return "compute capability {}.{}".format(*gpu_compiled_for().compute_capability)
    if queries.dtype not in kinds or keys.dtype != queries.dtype or key_scales is not None:
        return f"{queries.dtype} rows over {keys.dtype}"
    if rows % LANES:
        return f"{rows} rows"
    if head_dim not in head_dims:
        return f"head_dim {head_dim}"
    if capacity % LANES:
        return f"capacity {capacity}"
    if not numbered(keys):
        return "more than 2^31 slots in all layers"
    try:
        if target == "gpu":
            from pallas_kernels.prefill_attention import gpu as library

            return library if not interpret() else "no interpreter"
        from pallas_kernels.prefill_attention import tpu as library

        listed = library.most_blocks(keys)
        if listed > library.MOST_BLOCKS:
            return f"a list of {listed} blocks"
        idle = queries.shape[2] == keys.shape[2] and library.several_cores()
        return "one query head a KV head would leave a core idle" if idle else library
    except ImportError as error:
        return str(error)


def _of_gpu(gpu: Gpu) -> tuple[tuple[Any, ...], Sequence[int]]:
    """Dtypes and head sizes that the library's kernel takes; both empty for a GPU for which it is not compiled.

    The Mosaic GPU kernel would pad other head sizes, and the cache with them. The Triton kernel reads past the end of
    other head sizes; above 128 it needs more shared memory than any GPU of compute capability 8 but the A100 has.
    """
    narrow = (jnp.bfloat16, jnp.float16)
    match gpu.compute_capability[0]:
        case 8:
            return narrow, (16, 32, 64, 128)
        case 9:
            return narrow, range(16, 257, 16)
    return (), ()
