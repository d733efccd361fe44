"""Checks that requests fit the positions, the capacity and the memory, before the engine allocates its state."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tokenswift_jax.engine.host_memory import available_bytes
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import BLOCK, round_up
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.device_memory import cache_bytes_on_each, least_free
from tokenswift_jax.request import Request

# The largest factor of published models (Yarn-Llama-2 128K, Llama 3.2); no advice goes beyond it.
_FURTHEST = 32


def capacity_for(
    config: ModelConfig,
    requests: Sequence[Request],
    scratch: int,
    prefill_rows: int,
    asked: int | None,
    rope_override: Mapping[str, Any] | None = None,
) -> int:
    """Slots per row of the cache: enough for the longest row, an iteration's scratch slots and prefill's last chunk.

    Rounded up coarsely (by at most an eighth), so that requests of similar lengths share executables.

    Args:
      config: the decoder's configuration, which gives its positions.
      requests: one per row.
      scratch: slots that an iteration writes after a row's committed tokens, whether or not it commits them.
      prefill_rows: positions per row of one prefill forward.
      asked: slots that the caller wants, at least as many as needed; None: as many as needed.
      rope_override: the one with which the model was loaded, for the message.

    Raises:
      UserError: prompt + max_new_tokens exceeds the model's positions or the capacity asked for.
    """
    largest = max(requests, key=lambda request: len(request.prompt_ids) + request.max_new_tokens)
    prompt, new = len(largest.prompt_ids), largest.max_new_tokens
    longest = prompt + new
    limit = config.max_position_embeddings
    if longest > limit and config.limited_by is not None:
        raise UserError(
            f"prompt ({prompt} tokens) + max_new_tokens ({new}) exceeds {limit} positions; longer texts need "
            f"{config.limited_by} of config.json, which is not supported; ask for less",
            arguments=("max_new_tokens",),
        )
    if longest > limit and longest > _FURTHEST * _trained(config):
        raise UserError(
            f"prompt ({prompt} tokens) + max_new_tokens ({new}) exceeds the model's {limit} positions; ask for less",
            arguments=("max_new_tokens",),
        )
    if longest > limit:
        stretched = json.dumps(_stretched(config, longest, rope_override))
        how = "stretch them" if config.rope.type == "default" else f"stretch its RoPE (type {config.rope.type}) further"
        raise UserError(
            f"prompt ({prompt} tokens) + max_new_tokens ({new}) exceeds the model's {limit} positions; ask for less, "
            f"or {how}, which changes the model: rope_override={stretched}",
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


def _trained(config: ModelConfig) -> int:
    """The length in positions that the RoPE's factor stretches."""
    rope, limit = config.rope, config.max_position_embeddings
    return limit if rope.factor is None else rope.original_max_position or int(limit / rope.factor)


def _stretched(config: ModelConfig, longest: int, rope_override: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `rope_override` that makes room for `longest` positions and keeps the checkpoint's own type of RoPE."""
    rope, trained = config.rope, _trained(config)
    before = {name: value for name, value in (rope_override or {}).items() if name != "max_position_embeddings"}
    changed: dict[str, Any] = {"rope_type": "yarn"} if rope.type == "default" else {}
    if rope.type != "default" and {"type", "rope_type"} & set(before):
        changed["rope_type"] = rope.type
    changed |= {name: value for name, value in before.items() if name not in ("type", "rope_type")}
    changed["factor"] = float(math.ceil(longest / trained))
    if rope.type in ("default", "linear"):
        changed["original_max_position_embeddings"] = trained
    return changed


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
    mesh: Mesh | None = None,
) -> None:
    """Checks that the full cache and `drafter_bytes` of drafters' state fit the first device.

    `dtype` is the model's dtype, `cache_dtype` that of the cache's numbers (`kv.dense.empty_cache`). On a mesh,
    each device stores its part of the cache, and `drafter_bytes`.

    Raises:
      UserError: they exceed its free memory; the message ends with `advice`, which names these `arguments`.
    """
    needed = cache_bytes_on_each(mesh, config, batch, capacity, dtype, cache_dtype) + drafter_bytes
    free, where = _free_bytes() if mesh is None else None, ("", "")
    if mesh is not None:
        free, fullest = least_free(list(mesh.devices.flat))
        where = f" on each of {mesh.size} devices", f" on {fullest}"
    if free is not None and needed > free:
        missing = "" if mesh is None else f": {(needed - free) / 1e9:.1f} GB are missing"
        raise UserError(
            f"the cache of {batch} x {capacity} positions needs {needed / 1e9:.1f} GB{where[0]}, its other arrays "
            f"included, and {free / 1e9:.1f} GB are free{where[1]}{missing}; {advice}",
            arguments=arguments,
        )


def _free_bytes() -> int | None:
    """Free memory of the first device, in bytes; None where the platform does not report it."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return available_bytes() if device.platform == "cpu" else None
