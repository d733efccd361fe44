"""Executables: compiled ahead, so that compilation is timed apart from decoding, and kept for later calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

# More than one long run ever needs; each holds host memory only.
_KEPT = 64
# XLA may join matrix products of one input by laying their weights side by side, a copy of them at every step.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_dot_merger_threshold_mb": 0}}
_executables: OrderedDict[Any, jax.stages.Compiled] = OrderedDict()


def kept() -> list[jax.stages.Compiled]:
    """The executables kept at present, the latest used last."""
    return list(_executables.values())


class Programs:
    """Compiled programs of one run.

    Attributes:
      compile_seconds: spent compiling so far, the persistent cache's look-ups included.
    """

    def __init__(self) -> None:
        self.compile_seconds = 0.0

    def run(self, function: Callable, key: Any, *arguments: Any) -> Any:
        """Calls the jitted `function`, compiling it first where no earlier call had such arguments.

        Args:
          function: from `jax.jit`.
          key: hashable, tells apart functions that take arguments of the same shapes.
          arguments: its arguments.
        """
        return self.compile(function, key, *arguments)(*arguments)

    def compile(self, function: Callable, key: Any, *arguments: Any) -> jax.stages.Compiled:
        """The executable of `function` for such arguments; `key` as for `run`."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves)
        full = (key, structure, shapes)
        executable = _executables.get(full)
        if executable is None:
            begun = time.perf_counter()
            options = COMPILER_OPTIONS.get(jax.default_backend(), {})
            executable = function.lower(*arguments).compile(compiler_options=options)
            self.compile_seconds += time.perf_counter() - begun
            _executables[full] = executable
            while len(_executables) > _KEPT:
                _executables.popitem(last=False)
        _executables.move_to_end(full)
        return executable
