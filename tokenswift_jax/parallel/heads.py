"""Kernels on a mesh: each device computes attention for its own heads, without communication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from tokenswift_jax.parallel.island import island
from tokenswift_jax.parallel.rules import island_spec, one_device

# The names of each argument's dimensions, up to its heads; arguments not named here have none.
_ARGUMENTS = {
    "queries": ("batch", "rows", "heads"),
    "keys": ("layers", "batch", "kv_heads"),
    "values": ("layers", "batch", "kv_heads"),
    "own_keys": ("batch", "rows", "kv_heads"),
    "own_values": ("batch", "rows", "kv_heads"),
    "key_positions": ("layers", "batch", "kv_heads"),
    "key_scales": ("layers", "batch", "kv_heads"),
    "value_scales": ("layers", "batch", "kv_heads"),
    "query": ("batch", "heads"),
    "blocks": ("batch", "kv_heads"),
    "chosen": ("batch", "kv_heads"),
}


def shard_over_heads(kernel: Callable[..., Any], result: int, **arguments: Any) -> Any:
    """Calls a kernel; each device computes its own heads on a mesh of several devices.

    XLA cannot split a Pallas call by itself, so under `jax.set_mesh` this function splits it with `shard_map`.

    Args:
      kernel: takes keyword arguments only; static ones (int, None) pass through unchanged.
      result: the heads dimension of the kernel's result, or of each of its results.
      arguments: the kernel's arguments, by the kernel's parameter names.
    """
    if one_device():
        return kernel(**arguments)
    arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
    static = {name: value for name, value in arguments.items() if name not in arrays}
    split = island(
        lambda arrays: kernel(**arrays, **static),
        in_specs=({name: island_spec(*_ARGUMENTS.get(name, ())) for name in arrays},),
        out_specs=island_spec(*[None] * result, "heads"),
    )
    return split(arrays)
