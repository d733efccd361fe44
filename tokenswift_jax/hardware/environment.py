"""The machine and the libraries of a measurement, as fields of its row."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

_LIBRARIES = ("tokenswift_jax", "jax", "jaxlib", "flax", "numpy", "numba", "transformers", "torch", "xllamacpp")


def describe_environment() -> dict[str, Any]:
    """Start time, device, CPU, cores and versions, as fields of a row; without libraries that are not installed."""
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device": device.device_kind,
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "versions": versions,
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> list[float] | None:
    """Runnable processes over the last 1, 5 and 15 minutes; None where the system does not tell."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
