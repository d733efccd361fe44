"""The machine and the libraries of a measurement, as fields of its row."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from tokenswift_jax.hardware.cgroups import cgroup_folders, contents

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


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those of its affinity, or fewer where its cgroups give it less time.

    Args:
      root: the folder that contains `proc` and `sys`.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_quotas(root)]))


@functools.cache
def _quotas(root: Path) -> tuple[int, ...]:
    """The whole cores that each CPU cgroup of the process gives it, those above it included; read once, because the
    planner asks for them between chunks."""
    return tuple(_read_quotas(root))


def _read_quotas(root: Path) -> Iterator[int]:
    for folder, version in cgroup_folders("cpu", root):
        if version == 2:
            quota, _, period = contents(folder / "cpu.max").strip().partition(" ")
        else:
            quota, period = (contents(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no limit
            yield int(quota) // int(period)


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
