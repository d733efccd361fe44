"""Executables: compiled ahead, so that compilation is timed apart from decoding, and kept for later calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

from tokenswift_jax.progress_report import Report, phase, silent

# More than one long run ever needs; each holds host memory only.
_KEPT = 64
# XLA may join matrix products of one input by laying their weights side by side, a copy of them at every step. And one
# row's product with a small matrix it makes an element-wise one and a sum, for two matrices of one input in one loop:
# what they sum, as large as the weights and rounded to bfloat16, is written and read again.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_dot_merger_threshold_mb": 0, "xla_disable_hlo_passes": "dot-strength-reduction"}
}
_executables: OrderedDict[Any, jax.stages.Compiled] = OrderedDict()


def kept() -> list[jax.stages.Compiled]:
    """The executables kept at present, the latest used last."""
    return list(_executables.values())


class CompileCache:
    """Compiled programs of one run.

    Attributes:
      compile_seconds: spent compiling so far, the persistent cache's look-ups included.
    """

    def __init__(self, report: Report = silent) -> None:
        """Compilations are told to `report`."""
        self.compile_seconds = 0.0
        self._report = report

    def run(self, function: Callable, *arguments: Any, name: str = "a program") -> Any:
        """Calls `function`, from `jax.jit`, compiling it first where no earlier call of it had such arguments."""
        return self.compile(function, *arguments, name=name)(*arguments)

    def compile(self, function: Callable, *arguments: Any, name: str = "a program") -> jax.stages.Compiled:
        """The executable of `function`, from `jax.jit`, for such arguments; reports call it by its `name`."""
        leaves, structure = jax.tree.flatten(arguments)
        key = (function, structure, tuple(map(_kind, leaves)), jax.sharding.get_abstract_mesh())
        executable = _executables.get(key)
        if executable is None:
            begun = time.perf_counter()
            options = COMPILER_OPTIONS.get(jax.default_backend(), {})
            with phase(self._report, f"compiling {name}"):
                executable = function.lower(*arguments).compile(compiler_options=options)
            self.compile_seconds += time.perf_counter() - begun
            _executables[key] = executable
            while len(_executables) > _KEPT:
                _executables.popitem(last=False)
        _executables.move_to_end(key)
        return executable


def _kind(leaf: Any) -> tuple:
    """What an executable is made for, of one argument. Arrays on one device differ by nothing else."""
    placed = getattr(leaf, "sharding", None)
    several = placed if placed is not None and len(placed.device_set) > 1 else None
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), several
