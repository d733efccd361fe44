"""Kernels on a mesh: each device computes attention for its own heads, without communication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel.rules import TENSOR, split_over

_SECOND, _THIRD = P(None, TENSOR), P(None, None, TENSOR)
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
}


def over_heads(kernel: Callable[..., jax.Array], result: int, **arguments: Any) -> jax.Array:
    """Calls a kernel; each device computes its own heads if a mesh with an axis for heads is in use.

    XLA cannot split a Pallas call by itself, so under `jax.set_mesh` this function splits it with `shard_map`.

    Args:
      kernel: takes keyword arguments only; static ones (int, None) pass through unchanged.
      result: the heads dimension of the kernel's result.
      arguments: the kernel's arguments, by the kernel's parameter names.
    """
    if not split_over(TENSOR):
        return kernel(**arguments)
    arrays = {name: value for name, value in arguments.items() if isinstance(value, jax.Array)}
    static = {name: value for name, value in arguments.items() if name not in arrays}
    split = jax.shard_map(
        lambda arrays: kernel(**arrays, **static),
        in_specs=({name: _ARGUMENTS.get(name, P()) for name in arrays},),
        out_specs=P(*[None] * result, TENSOR),
        check_vma=False,  # a Pallas call does not say how its result varies
    )
    return split(arrays)
