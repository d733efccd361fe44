"""The cache of executables: it compiles them before they run, to time compilation separately, and keeps them."""

from __future__ import annotations

import gc
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

from tokenswift_jax.parallel.mesh import run
from tokenswift_jax.progress_report import Report, phase, silent

# Enough for any long run, and for a server with several groups of slots (some 15 each); an executable costs host
# memory only.
_KEPT = 256
# XLA makes the kernels of an iteration a graph and, with WHILE in the first option, also the loop around them. Without
# it, the host waits after every iteration to read whether another follows (cost on an H200: 33 to 47 us).
# Without the second option, XLA may merge matmuls that share an input by concatenating their weights (cost: a copy of
# these weights at every step). Without the third, XLA rewrites a one-row matmul with a small matrix as
# multiply-and-reduce. When two of them with the same input share a loop, XLA writes a bfloat16 intermediate as large as
# the weights to memory and reads it back.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE,"
        "DYNAMIC_SLICE_FUSION",
        "xla_gpu_dot_merger_threshold_mb": 0,
        "xla_disable_hlo_passes": "dot-strength-reduction",
    }
}
# XLA prefers these options to its own flags; a user who gives such a flag wants it.
for _options in COMPILER_OPTIONS.values():
    for _name in [name for name in _options if f"--{name}=" in os.environ.get("XLA_FLAGS", "")]:
        del _options[_name]
_executables: OrderedDict[Any, jax.stages.Compiled] = OrderedDict()
_longest = 0.0


def longest_compilation() -> float:
    """Seconds of the longest compilation of this process."""
    return _longest


def cached_executables() -> list[jax.stages.Compiled]:
    """The executables in the cache, the most recently used last."""
    return list(_executables.values())


def forget() -> None:
    """Lets go of all executables, here and in JAX.

    Without it, a process that compiles hundreds of programs ends in the compiler: Linux allows a process 65,530 memory
    maps, and an executable for a CPU takes some on each device.
    """
    _executables.clear()
    jax.clear_caches()
    gc.collect()


class CompileCache:
    """The compiled programs of one run.

    Attributes:
      compile_seconds: seconds spent compiling so far, including look-ups in the persistent cache.
    """

    def __init__(self, report: Report = silent) -> None:
        """Reports compilations to `report`."""
        self.compile_seconds = 0.0
        self._report = report

    def run(
        self,
        function: Callable,
        *arguments: Any,
        name: str = "a program",
        executable: jax.stages.Compiled | None = None,
    ) -> Any:
        """Calls `function`, from `jax.jit`, and compiles it first unless an earlier call had such arguments.

        `executable` is what `compile` returned for such arguments; None: look for it by their shapes.
        """
        if executable is None:
            executable = self.compile(function, *arguments, name=name)
        return run(executable, *arguments)

    def compile(self, function: Callable, *arguments: Any, name: str = "a program") -> jax.stages.Compiled:
        """Returns the executable of `function`, from `jax.jit`, for such arguments; reports call it `name`."""
        global _longest
        key = key_of(function, *arguments)
        executable = _executables.get(key)
        if executable is None:
            begun = time.perf_counter()
            options = COMPILER_OPTIONS.get(jax.default_backend(), {})
            with phase(self._report, f"compiling {name}"):
                executable = function.lower(*arguments).compile(compiler_options=options)
            taken = time.perf_counter() - begun
            self.compile_seconds, _longest = self.compile_seconds + taken, max(_longest, taken)
            _executables[key] = executable
            while len(_executables) > _KEPT:
                _executables.popitem(last=False)
        _executables.move_to_end(key)
        return executable


def has(key: tuple) -> bool:
    """Whether the cache has the executable of a key."""
    return key in _executables


def key_of(function: Callable, *arguments: Any) -> tuple:
    """The key of the executable of `function` for such arguments, arrays or `jax.ShapeDtypeStruct`s."""
    leaves, structure = jax.tree.flatten(arguments)
    return function, structure, tuple(map(_kind, leaves)), jax.sharding.get_abstract_mesh()


def _kind(leaf: Any) -> tuple:
    """The part of an executable's key that one argument gives. Arrays on one device differ in nothing else."""
    placed = getattr(leaf, "sharding", None)
    several = None if isinstance(placed, jax.sharding.SingleDeviceSharding) else placed
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), several
