"""The memory that the devices of a mesh have free, and whether a model's weights fit it before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from tokenswift_jax.engine.host_memory import available_bytes
from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.mesh import spec_of
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


def check_weights(mesh: Mesh, params: Any) -> None:
    """Checks that parameters, arrays or shapes, fit the devices of a mesh.

    Raises:
      UserError: they do not; it names the device, the bytes that are missing and a larger mesh if there is one.
    """
    needed = bytes_on_each(dict(mesh.shape), params)
    free, device = least_free(list(mesh.devices.flat))
    if free is None or needed <= free:
        return
    unused = jax.device_count() > mesh.size
    lacking = f"{(needed - free) / 1e9:.1f} GB are missing"
    advice = "a larger model axis stores less on each" if unused else "there is no device left to share them"
    raise UserError(
        f"mesh {spec_of(mesh)} puts {needed / 1e9:.1f} GB of weights on each device, and {device} has "
        f"{free / 1e9:.1f} GB free: {lacking}; {advice}",
        arguments=("mesh",),
    )
