"""Steps of decoding compiled in several ways in one process, side by side.

XLA times its candidates for a product repeatedly with the same weights. A small model's weights then stay in a
second-level cache, which they never do in decoding, so XLA may choose a slow candidate. Some variants restrict the
choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS
from tokenswift_jax.hardware import profiler, roofline, steps
from tokenswift_jax.hardware.filled_steps import RandomModel, continued, milliseconds_a_pass, random_model
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.layers import Linear

WORKERS = 3
PADDED_ROWS = 16
Case = tuple[str, str]  # step, variant


@dataclass(frozen=True)
class AttentionSizes:
    """Sizes of `tree_attention`'s programs on GPUs; None: decoding's own.

    Attributes:
      tile: rows, columns, warps and stages of a program.
      splits: of the length.
    """

    tile: tuple[int, int, int, int] | None = None
    splits: int | None = None

    def __str__(self) -> str:
        tile = "present" if self.tile is None else "x".join(map(str, self.tile))
        return tile if self.splits is None else f"{tile}, {self.splits} splits"

    def applied(self) -> AbstractContextManager:
        """Programs traced inside have these sizes."""
        stack = ExitStack()
        if self == AttentionSizes():
            return stack
        from pallas_kernels.tree_attention import gpu

        if self.tile is not None:
            tile = gpu.Tile(*self.tile)
            stack.enter_context(changed(gpu, "tile_for", lambda *_, **__: tile))
        if self.splits is not None:
            stack.enter_context(changed(gpu, "splits_for", lambda *_: self.splits))
        return stack


@dataclass(frozen=True)
class Variant:
    """How a step is compiled.

    Attributes:
      join: whether linear maps of the same rows are one (`models.joined`).
      options: options of XLA in addition to decoding's own.
      padded: whether products of fewer rows than PADDED_ROWS get rows of zeros.
      one_pass: whether verification may compute the draft heads' logits in its pass over the LM head.
      attention: other sizes for the programs of attention.
    """

    join: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    padded: bool = False
    one_pass: bool = True
    attention: AttentionSizes = AttentionSizes()


JOINED, APART = "joined", "apart"
VARIANTS = {
    JOINED: Variant(),
    APART: Variant(join=False),
    "two passes": Variant(one_pass=False),
    "padded": Variant(padded=True),
    # Without cuBLASLt.
    "triton": Variant(
        options={"xla_gpu_experimental_autotune_backends": "TRITON,NATIVE_EMITTER,BLOCK_LEVEL_EMITTER,CUSTOM_KERNEL"}
    ),
    "untuned": Variant(options={"xla_gpu_autotune_level": 0}),
    # Of one row, before the fifth plan.
    "64 columns": Variant(attention=AttentionSizes(tile=(16, 64, 4, 3))),
    "49 splits": Variant(attention=AttentionSizes(splits=49)),
}


def time_variants(config: ModelConfig, check: Any, profiled: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each step, variant and length; then the profiles of the first step.

    A step with top-k and top-p is timed after the first of the lengths only.

    Args:
      config: the model's.
      check: a `sections.Check`.
      profiled: variants for which the slowest operations are listed.
    """
    names, kinds, lengths, capacity = check.steps, check.variants, check.lengths, check.capacity
    ceilings = check.ceilings()
    by_join = {join: random_model(config, check.dtype, join) for join in {VARIANTS[kind].join for kind in kinds}}
    models = {kind: by_join[VARIANTS[kind].join] for kind in kinds}
    cases = [(name, kind) for name in names for kind in kinds]
    made = _compiled(models, cases, capacity)
    for name, kind in cases:
        for length in lengths:
            if name.endswith("-topkp") and length != lengths[0]:
                continue
            about = {"step": name, "variant": kind, "length": length}
            try:
                step = continued(models[kind], name, length, capacity, made[name, kind].result())
                taken = milliseconds_a_pass(step)
            except Exception as error:  # of one program; the others are worth their time
                yield about | {"refused": f"{type(error).__name__}: {error}"[:1000]}
                continue
            cost = roofline.step_cost(name, config, length, check.dtype.itemsize)
            share = cost.bytes / (taken["milliseconds"] / 1e3) / ceilings[0]
            floor = 1e3 * cost.floor(*ceilings)
            yield about | taken | {"bytes": cost.bytes, "floor_milliseconds": floor, "of_copy_bandwidth": share}
    for kind in profiled:
        step = continued(models[kind], names[0], lengths[0], capacity, made[names[0], kind].result())
        for row in profiler.slowest(step, names[0], lengths[0]):
            yield row | {"variant": kind}


def _compiled(models: dict[str, RandomModel], cases: Sequence[Case], capacity: int) -> dict[Case, Future]:
    """The executables; the first is compiled while no other is, so that nothing disturbs the choice of its tiles."""
    on_gpu = jax.default_backend() == "gpu"
    ours = COMPILER_OPTIONS.get(jax.default_backend(), {})
    options = {kind: {**ours, **(VARIANTS[kind].options if on_gpu else {})} for kind in models}
    made: dict[Case, Future] = {}
    lowered: dict[tuple[Any, ...], jax.stages.Lowered] = {}

    def compile_after(first: Future | None, program: jax.stages.Lowered, kind: str) -> Any:
        if first is not None:
            first.exception()
        return program.compile(options[kind])

    workers = ThreadPoolExecutor(WORKERS)
    for name, kind in cases:
        variant = VARIANTS[kind]
        key = name, variant.join, variant.padded, variant.one_pass, variant.attention
        if key not in lowered:
            model = models[kind]
            # A function of its own each time, or JAX would take the trace of another variant.
            of = name, model.config, capacity, model.dtype
            step = steps.step_named(*of, join=model.join, one_pass=variant.one_pass)
            with _padding() if variant.padded else nullcontext(), variant.attention.applied():
                lowered[key] = step.function.lower(*step.arguments)
        first = made.get(cases[0])
        made[name, kind] = workers.submit(compile_after, first, lowered[key], kind)
    # The caller measures each program when it is there. On an H200 all of them took longer to compile than the stage
    # had (46 s), and nothing was measured.
    workers.shutdown(wait=False)
    return made


def _padding() -> AbstractContextManager:
    """Programs traced inside multiply at least PADDED_ROWS rows."""

    def sums(linear: Linear, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] >= PADDED_ROWS:
            return jnp.tensordot(x, linear.kernel[...], axes=1)
        # Without the barriers, XLA multiplies only the rows in use.
        wide = jax.lax.optimization_barrier(jnp.pad(rows, ((0, PADDED_ROWS - rows.shape[0]), (0, 0))))
        product = jax.lax.optimization_barrier(jnp.tensordot(wide, linear.kernel[...], axes=1))
        return product[: rows.shape[0]].reshape(*x.shape[:-1], *product.shape[1:])

    return changed(Linear, "sums", sums)


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of this package's own has another value inside."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
