"""Strict numerics for every test: silent promotion is an error."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("NPROC", "32")  # fewer threads than virtual devices can deadlock a collective on CPU

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Linux allows a process 65,530 memory maps, and every executable for CPU takes some: a worker that has compiled for
# hundreds of tests would crash in the compiler.
_MAPS = Path("/proc/self/maps")
_MANY = 20_000


@pytest.fixture(scope="module", autouse=True)
def released():
    """Lets go of compiled programs after a module, where they have become many."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY:
        jax.clear_caches()
        gc.collect()
