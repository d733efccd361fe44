"""Steps of decoding with joined linear maps and without, in one process: their programs are compiled side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from hardware import profiles, roofline
from hardware.filled import RandomModel, continued, milliseconds_a_pass, random_model, shaped_step
from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS
from tokenswift_jax.models.config import ModelConfig

JOINED, APART = "joined", "apart"
WORKERS = 3
Case = tuple[str, str]  # step, JOINED or APART


def timed(
    config: ModelConfig,
    names: Sequence[str],
    kinds: Sequence[str],
    lengths: Sequence[int],
    capacity: int,
    dtype: Any,
    ceilings: tuple[float, float],
    profiled: bool,
) -> Iterator[dict[str, Any]]:
    """A row for each step, kind of linear maps and length; then, if `profiled`, the profiles of the first step.

    Args:
      config: of the model.
      names: of steps; one with top-k and top-p is timed after the first of the lengths only.
      kinds: JOINED, APART or both.
      lengths: committed tokens.
      capacity: slots of the cache.
      dtype: of weights and activations.
      ceilings: bytes a second of a copy, operations a second of products.
      profiled: whether the operations that take longest are listed too.
    """
    models = {kind: random_model(config, dtype, kind == JOINED) for kind in kinds}
    cases = [(name, kind) for name in names for kind in kinds]
    made = _compiled(models, cases, capacity)
    for length in lengths:
        for name, kind in cases:
            if name.endswith("-topkp") and length != lengths[0]:
                continue
            about = {"step": name, "variant": kind, "length": length}
            try:
                step = continued(models[kind], name, length, capacity, made[name, kind].result())
                taken = milliseconds_a_pass(step)
            except Exception as error:  # of one program; the others are worth their time
                yield about | {"refused": f"{type(error).__name__}: {error}"[:1000]}
                continue
            cost = roofline.step_cost(name, config, length, dtype.itemsize)
            share = cost.bytes / (taken["milliseconds"] / 1e3) / ceilings[0]
            floor = 1e3 * cost.floor(*ceilings)
            yield about | taken | {"bytes": cost.bytes, "floor_milliseconds": floor, "of_copy_bandwidth": share}
    for kind in kinds if profiled else ():
        step = continued(models[kind], names[0], lengths[0], capacity, made[names[0], kind].result())
        for row in profiles.slowest(step, names[0], lengths[0]):
            yield row | {"variant": kind}


def _compiled(models: dict[str, RandomModel], cases: Sequence[Case], capacity: int) -> dict[Case, Future]:
    """The executables; the first is compiled while no other is, so that nothing disturbs the choice of its tiles."""
    options = COMPILER_OPTIONS.get(jax.default_backend(), {})
    made: dict[Case, Future] = {}
    with ThreadPoolExecutor(WORKERS) as workers:
        lowered = {}
        for name, kind in cases:
            step = shaped_step(models[kind], name, capacity)
            lowered[name, kind] = step.function.lower(*step.arguments)
            if not made:
                made[name, kind] = workers.submit(lowered[name, kind].compile, options)
        made[cases[0]].exception()
        for case in cases[1:]:
            made[case] = workers.submit(lowered[case].compile, options)
    return made
