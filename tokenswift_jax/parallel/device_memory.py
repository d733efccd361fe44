"""The memory that the devices of a mesh have free, and whether a model and its cache fit it, before they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
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
from tokenswift_jax.parallel.fit import fit
from tokenswift_jax.parallel.mesh import limits_here, make_mesh, mesh_over, spec_of
from tokenswift_jax.parallel.mesh_spec import CONTEXT, STAGE, MeshSpec
from tokenswift_jax.parallel.rules import bytes_on_each
from tokenswift_jax.processes.agreement import processes_here


def least_free(devices: Sequence[Any]) -> tuple[int | None, str]:
    """The least free memory among devices, in bytes, and the device that has it.

    None where the platform does not report it. The virtual devices of a CPU share the host's memory equally, those of
    other processes on the same machine included.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    if devices[0].platform == "cpu":
        here = processes_here()  # before any of them looks, and takes the memory that it finds
        free, sharers = available_bytes(), sum(device.process_index in here for device in devices)
        return None if free is None else free // sharers, str(own[0])
    found = {}
    for device in own:  # the other processes look at theirs
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
      UserError: they do not; it names the device, the bytes that are missing, and a mesh that has room if there is one.
    """
    weights, cache = bytes_on_each(dict(mesh.shape), params), 0
    if length is not None:
        cache = cache_bytes_on_each(mesh, config, 1, length, jnp.dtype(dtype))
    free, device = least_free(list(mesh.devices.flat))
    if free is None or weights + cache <= free:
        return
    whole, needed = f"{_shown(weights)} of weights", weights
    if cache and weights <= free:
        whole, needed = f"{whole} and {_shown(cache)} of cache for {length} positions", weights + cache
    found, count = _with_room(mesh, params, config, dtype, length), jax.device_count()
    remedy = f"no mesh of these {count} devices has room" if count > 1 else "there is no other device to share them"
    remedy += "; ask for a shorter text" if needed > weights else ""
    short = f"{device} has {_shown(free)} free: {_shown(needed - free)} are missing"
    if mesh.size > 1:
        remedy = remedy if found is None else f"mesh {found} has room"
        raise UserError(f"mesh {spec_of(mesh)} puts {whole} on each device, and {short}; {remedy}", arguments=("mesh",))
    if found is not None:
        raise UserError(f"the model has {whole}, and {short}; mesh {found} has room", arguments=("mesh",))
    raise UserError(f"the model has {whole}, and {short}; {remedy}")


def _with_room(mesh: Mesh, params: Any, config: ModelConfig, dtype: Any, length: int | None) -> MeshSpec | None:
    """The mesh of the fewest devices, with the stages of this one, that has room for the same; None: there is none."""
    stages, (count, processes, _) = mesh.shape[STAGE], limits_here()
    sizes = [2**power for power in range(count.bit_length())]
    shapes = {
        MeshSpec(model=model, context=context, stage=stages) for model, context in product([*sizes, count], sizes)
    }
    for spec in sorted(shapes, key=lambda spec: (spec.devices, spec.context)):
        if spec.devices > count or spec.devices % processes:
            continue
        other, fitted = make_mesh(spec) or mesh_over(jax.devices(), spec), fit(config, spec.model, spec.context)
        needed = bytes_on_each(dict(other.shape), params)
        if length is not None:
            whole = config if fitted is None else fitted.config
            needed += cache_bytes_on_each(other, whole, 1, length, jnp.dtype(dtype))
        free, _ = least_free(list(other.devices.flat))
        if free is None or needed <= free:
            return spec
    return None


def _shown(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
