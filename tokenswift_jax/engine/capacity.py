"""Checks that requests fit the positions, the capacity and the memory, before the engine allocates its state."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import BLOCK, cache_bytes, round_up
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.request import Request


def capacity_for(
    config: ModelConfig, requests: Sequence[Request], scratch: int, prefill_rows: int, asked: int | None
) -> int:
    """Slots per row of the cache: enough for the longest row, an iteration's scratch slots and prefill's last chunk.

    Rounded up coarsely (by at most an eighth), so that requests of similar lengths share executables.

    Args:
      config: the decoder's configuration, which gives its positions.
      requests: one per row.
      scratch: slots that an iteration writes after a row's committed tokens, whether or not it commits them.
      prefill_rows: positions per row of one prefill forward.
      asked: slots that the caller wants, at least as many as needed; None: as many as needed.

    Raises:
      UserError: prompt + max_new_tokens exceeds the model's positions or the capacity asked for.
    """
    largest = max(requests, key=lambda request: len(request.prompt_ids) + request.max_new_tokens)
    prompt, new = len(largest.prompt_ids), largest.max_new_tokens
    longest = prompt + new
    limit = config.max_position_embeddings
    if longest > limit:
        stretched = f'{{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": {limit}}}'
        raise UserError(
            f"prompt ({prompt} tokens) + max_new_tokens ({new}) exceeds the model's {limit} "
            f"positions; ask for less, or stretch them, for example with rope_override={stretched}",
            arguments=("max_new_tokens", "rope_override"),
        )
    needed = round_up(max(longest + scratch + 1, round_up(longest, prefill_rows)))
    if asked is not None:
        if asked < needed:
            raise UserError(
                f"capacity {asked} is too small: this request needs {needed} positions", arguments=("capacity",)
            )
        return round_up(asked)
    return round_up(needed, max(BLOCK, 2 ** (needed.bit_length() - 4)))


def check_memory(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype: jnp.dtype,
    *,
    advice: str,
    drafter_bytes: int = 0,
    arguments: Sequence[str] = (),
    cache_dtype: str | None = None,
) -> None:
    """Checks that the full cache and `drafter_bytes` of drafters' state fit the first device.

    `dtype` is the model's dtype, `cache_dtype` that of the cache's numbers (`kv.dense.empty_cache`).

    Raises:
      UserError: they exceed its free memory; the message ends with `advice`, which names these `arguments`.
    """
    needed = cache_bytes(config, batch, capacity, dtype, cache_dtype) + drafter_bytes
    free = _free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"the cache of {batch} x {capacity} positions needs {needed / 1e9:.1f} GB, with all that goes with it, and "
            f"{free / 1e9:.1f} GB are free; {advice}",
            arguments=arguments,
        )


def _free_bytes() -> int | None:
    """Free memory of the first device, in bytes; None where the platform does not report it."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
