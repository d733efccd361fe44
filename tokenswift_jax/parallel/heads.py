"""Kernels on a mesh: each device computes attention for its own heads, without communication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.island import island
from tokenswift_jax.parallel.mesh_spec import MODEL
from tokenswift_jax.parallel.rules import one_device

_SECOND, _THIRD = P(None, MODEL), P(None, None, MODEL)
# The heads dimension of each argument; arguments not named here have none.
_ARGUMENTS = {
    "queries": _THIRD,
    "keys": _THIRD,
    "values": _THIRD,
    "own_keys": _THIRD,
    "own_values": _THIRD,
    "key_positions": _THIRD,
    "key_scales": _THIRD,
    "value_scales": _THIRD,
    "query": _SECOND,
    "blocks": _SECOND,
    "chosen": _SECOND,
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
        in_specs=({name: _ARGUMENTS.get(name, P()) for name in arrays},),
        out_specs=P(*[None] * result, MODEL),
    )
    return split(arrays)
