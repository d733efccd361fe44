"""The memory that a stage's arrays need, and the devices that have it."""

from __future__ import annotations

from typing import Any

from hardware import attention_sweep, roofline, shapes
from hardware.kernel_speed import LAYERS

from tokenswift_jax.engine.prefill import ACCELERATOR_ROWS
from tokenswift_jax.kv.dense import cache_bytes

# Bytes that programs may take of a device; a driver, its graphs and the libraries' workspaces take the rest.
DEVICES = {"H100 80GB": 0.92 * 81559 * 2**20, "H200 141GB": 0.92 * 143771 * 2**20}
ROOM = 3 * 2**30  # logits and temporaries; the largest shapes that the compiler tries products on
LONGEST = 126976 + 2048


def needed_bytes(section: str, model: str, capacity: int, dtype: Any) -> int:
    """Bytes that a section holds at once for a model's shapes and a cache of so many slots."""
    config = shapes.config_of(model)
    size = config.num_kv_heads * config.head_dim * dtype.itemsize
    if section == "attention":  # beside the cache, one layer of it and the scores of 64 rows in float64
        return 2 * attention_sweep.LAYERS * size * capacity + 8 * 64 * config.num_heads * capacity * 6 + ROOM
    if section == "kernels":
        return 2 * LAYERS * size * (capacity + ACCELERATOR_ROWS) + ROOM
    if section in ("steps", "profile", "profile_graphs", "options", "joined"):
        return roofline.parameter_bytes(config, dtype.itemsize) + cache_bytes(config, 1, capacity, dtype) + ROOM
    return ROOM


def where_it_fits(needed: int) -> str:
    """The devices that hold so many bytes, as words."""
    fitting = [name for name, holds in DEVICES.items() if needed <= holds]
    return " and ".join(fitting) or "no device of " + " and ".join(DEVICES)
