"""One step with and without an option of XLA, in turns on one machine: what the option is worth there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from hardware.filled import RandomModel, filled_variants

BASE = "base"
OPTIONS: dict[str, dict[str, Any]] = {
    # The loop over iterations becomes a node of the graph: the host waits once a chunk instead of once an iteration.
    # Executing such a graph a second time has crashed (openxla/xla issue 35760, mended in December 2025).
    "while": {
        "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE,"
        "DYNAMIC_SLICE_FUSION"
    },
    # Kernels are not launched before the one ahead of them has ended (programmatic dependent launch).
    "no-pdl": {"xla_gpu_enable_pdl": False, "xla_gpu_enable_pdl_launch": False},
}
ROUNDS, CALLS = 3, 4  # the shortest call of a round counts; one call before the first round is not timed


def trial(model: RandomModel, name: str, length: int, capacity: int, option: str) -> Iterator[dict[str, Any]]:
    """A row a round with the milliseconds of an iteration without the option and with it.

    Each row comes as it is measured: of a program that crashes, the rows before it remain. On a CPU, which has none of
    these options, both are the program without.
    """
    there = OPTIONS[option] if jax.default_backend() == "gpu" else {}
    steps = dict(filled_variants(model, name, length, capacity, {BASE: {}, option: there}))
    about = {"step": name, "length": length, "option": option}
    for step in steps.values():
        step.call()
    for index in range(ROUNDS):
        taken = {variant: min(step.milliseconds() for _ in range(CALLS)) for variant, step in steps.items()}
        saved = 1e3 * (taken[BASE] - taken[option])
        row = {"milliseconds": taken[BASE], "milliseconds_with": taken[option], "saved_microseconds": saved}
        yield {**about, "round": index + 1, **row}
