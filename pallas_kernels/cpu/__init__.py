"""Kernels for CPUs, written in Numba (the extra `[cpu]`), which XLA calls: products and attention of a few rows.

XLA reads weights for one row at some 40% of a CPU's memory bandwidth and for 8 rows at 20%, and copies every block of a
cache before it multiplies it. These kernels read each number once, on all of XLA's threads, and give a row the same
sums for any number of rows and threads.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
import threading
import warnings

import jax
import jax.numpy as jnp

from pallas_kernels.implementation import for_this_process

ROWS = 16  # with more rows, XLA's matmuls are as fast
LANES = 16  # numbers in a vector: 512 bits; LLVM splits them where the processor has narrower registers
HEAD_DIM = 4 * LANES  # head sizes of the attention kernel are multiples of it


def serves(rows: int, *arrays: jax.Array) -> bool:
    """Whether the kernels compute these arrays for `rows` rows, in the program that JAX traces now.

    It is False without Numba, for an accelerator, in a `compiling_for`, on a mesh, and for a dtype but float32.
    """
    return (
        0 < rows <= ROWS
        and all(x.dtype == jnp.float32 for x in arrays)
        and for_this_process()
        and jax.default_backend() == "cpu"
        and jax.sharding.get_abstract_mesh().empty
        and installed()
        and _registered()
    )


@functools.cache
def installed() -> bool:
    """Whether Numba is here, and a processor that multiplies and adds in one instruction, under Linux or macOS."""
    if importlib.util.find_spec("numba") is None or platform.system() == "Windows":
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return platform.machine().lower() in ("arm64", "aarch64")
    from llvmlite import binding

    return binding.get_host_cpu_features().get("fma", False)


def load_ahead() -> None:
    """Loads the kernels in another thread if this process has a use for them.

    Numba compiles them for some seconds on the first use on a machine. Without this call, the tracing of the first
    program of a few rows waits for that; with it, Numba works while weights are read and prefill is compiled.
    """
    if jax.default_backend() == "cpu" and installed():
        threading.Thread(target=_registered, name="tokenswift kernels").start()


@functools.cache
def _registered() -> bool:
    """Compiles the kernels and makes them known to XLA; False, with a warning, if one of the two libraries refuses."""
    try:
        importlib.import_module("pallas_kernels.cpu.product")
        importlib.import_module("pallas_kernels.cpu.attention")
        importlib.import_module("pallas_kernels.cpu.write")
    except Exception as error:  # a new version of either may raise anything; XLA computes the step then
        warnings.warn(f"the Numba kernels do not load, so XLA computes every step: {error}", stacklevel=2)
        return False
    return True
