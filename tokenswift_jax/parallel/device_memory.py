"""The memory that the devices of a mesh have free, and whether a model and its cache fit it, before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tokenswift_jax.engine.host_memory import available_bytes
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.kv.dense import cache_bytes
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.mesh import spec_of
from tokenswift_jax.parallel.mesh_spec import CONTEXT
from tokenswift_jax.parallel.rules import bytes_on_each


def least_free(devices: Sequence[Any]) -> tuple[int | None, str]:
    """The least free memory among devices, in bytes, and the device that has it.

    None where the platform does not report it. The virtual devices of a CPU share the host's memory equally.
    """
    if devices[0].platform == "cpu":
        free = available_bytes()
        own = sum(device.process_index == jax.process_index() for device in devices)
        return None if free is None else free // max(own, 1), str(devices[0])
    found = {}
    for device in devices:
        if device.process_index != jax.process_index():  # its own process looks at it
            continue
        stats = device.memory_stats()
        if stats and "bytes_limit" in stats:
            found[device] = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if not found:
        return None, ""
    fullest = min(found, key=found.__getitem__)
    return found[fullest], str(fullest)


def cache_bytes_on_each(
    mesh: Mesh | None, config: ModelConfig, batch: int, capacity: int, dtype: jnp.dtype, cache_dtype: str | None = None
) -> int:
    """The bytes of a full cache (`full_cache`) that each device of a mesh stores; None: one device."""
    if mesh is None:
        return cache_bytes(config, batch, capacity, dtype, cache_dtype)
    devices = mesh.shape[CONTEXT]
    cyclic = None if devices == 1 else Cyclic(devices)
    shapes = jax.eval_shape(lambda: full_cache(config, batch, capacity, dtype, cache_dtype, cyclic))
    return bytes_on_each(dict(mesh.shape), shapes)


def check_room(mesh: Mesh, params: Any, config: ModelConfig, dtype: Any, length: int | None = None) -> None:
    """Checks that parameters, arrays or shapes, fit the devices of a mesh, with the cache of one text.

    Args:
      mesh: the mesh.
      params: the decoder's.
      config: the configuration that fits the mesh.
      dtype: of the model.
      length: positions of the text; None: unknown, no cache is counted.

    Raises:
      UserError: they do not; it names the device, the bytes that are missing and a larger mesh if there is one.
    """
    weights, cache = bytes_on_each(dict(mesh.shape), params), 0
    if length is not None:
        cache = cache_bytes_on_each(mesh, config, 1, length, jnp.dtype(dtype))
    needed = weights + cache
    free, device = least_free(list(mesh.devices.flat))
    if free is None or needed <= free:
        return
    unused = jax.device_count() > mesh.size
    whole = f"{_shown(weights)} of weights"
    if cache and weights <= free:
        whole += f" and {_shown(cache)} of cache for {length} positions"
        advice = "a larger model or context axis stores less on each" if unused else "ask for a shorter text"
    else:
        advice = "a larger model axis stores less on each" if unused else "there is no device left to share them"
        needed = weights
    raise UserError(
        f"mesh {spec_of(mesh)} puts {whole} on each device, and {device} has {_shown(free)} free: "
        f"{_shown(needed - free)} are missing; {advice}",
        arguments=("mesh",),
    )


def _shown(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
