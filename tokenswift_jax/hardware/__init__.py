"""Programs on accelerators: compile them for absent devices, count their bytes, operations and launches, check kernels.

Each name is imported when it is first used, so that `import tokenswift_jax.hardware` loads no jax.

    from tokenswift_jax import hardware

    hardware.compile_without_hardware()                        # first: no driver, no metadata server
    hardware.aot_row("h200", "Llama-3.1-8B", "plain", 2, 4096, {}, folder)["good"]
    hardware.moved_bytes(compiled.as_text())                   # bytes that a program reads and writes
    hardware.step_cost("plain", config, 16384).bytes           # the least that a step must move
    hardware.count_launches(thunks, program)                   # kernels, graph launches and host waits of an iteration
    list(hardware.check_kernels(dtype))                        # every kernel against float64
    hardware.filled_step(model, "plain", 16384, 32768)         # a step with random weights, to be timed
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenswift_jax.hardware.aot import aot_row
    from tokenswift_jax.hardware.copies import large_arrays
    from tokenswift_jax.hardware.environment import describe_environment
    from tokenswift_jax.hardware.filled_steps import filled_step, random_model
    from tokenswift_jax.hardware.kernel_checks import check_kernels
    from tokenswift_jax.hardware.launches import count_launches
    from tokenswift_jax.hardware.roofline import step_cost
    from tokenswift_jax.hardware.shapes import config_of
    from tokenswift_jax.hardware.targets import TARGETS, compile_without_hardware
    from tokenswift_jax.hardware.traffic import moved_bytes

__all__ = [
    "TARGETS",
    "aot_row",
    "check_kernels",
    "compile_without_hardware",
    "config_of",
    "count_launches",
    "describe_environment",
    "filled_step",
    "large_arrays",
    "moved_bytes",
    "random_model",
    "step_cost",
]

_HOMES = {
    "TARGETS": "targets",
    "aot_row": "aot",
    "check_kernels": "kernel_checks",
    "compile_without_hardware": "targets",
    "config_of": "shapes",
    "count_launches": "launches",
    "describe_environment": "environment",
    "filled_step": "filled_steps",
    "large_arrays": "copies",
    "moved_bytes": "traffic",
    "random_model": "filled_steps",
    "step_cost": "roofline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
