"""A device check in sections: generators of rows, each small enough for a few minutes on the attached device."""

from __future__ import annotations

import importlib
import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.engine.prefill import ACCELERATOR_ROWS
from tokenswift_jax.hardware import (
    bookkeeping_checks,
    kernel_checks,
    kernel_speed,
    profiler,
    roofline,
    shapes,
    tile_sweep,
    transformers_steps,
    variants,
)
from tokenswift_jax.hardware.clock import copy_bandwidth, product_rate
from tokenswift_jax.hardware.filled_steps import filled_step, milliseconds_a_pass, random_model
from tokenswift_jax.hardware.long_texts import PROMPT, long_texts
from tokenswift_jax.hardware.texts import texts
from tokenswift_jax.kv.dense import cache_bytes

Rows = Iterator[dict[str, Any]]
# Bytes that programs may take of a device; the driver, its graphs and the workspaces of libraries take the rest.
DEVICES = {"H100 80GB": 0.92 * 81559 * 2**20, "H200 141GB": 0.92 * 143771 * 2**20}
ROOM = 3 * 2**30  # logits and temporaries; the largest shapes that the compiler tries products on
LONGEST = 126976 + 2048


@dataclass(frozen=True)
class Check:
    """Settings of the sections.

    Attributes:
      model: name of the shapes (`shapes.NAMES`).
      lengths: committed tokens at which steps and kernels are timed.
      capacity: slots of the cache.
      copied_bytes: of the array that the copy bandwidth is measured with.
      steps: the iterations that are timed (of `steps.STEPS`).
      demo_dtype: of the bundled model's texts.
      demo_tokens: of each text; of a text of random weights at most.
      variants: ways in which steps are compiled (of `variants.VARIANTS`).
      earlier: rows of earlier sections, of this process or another.
      report: prints a line of progress.
    """

    model: str
    lengths: tuple[int, ...]
    capacity: int
    copied_bytes: int
    steps: tuple[str, ...]
    demo_dtype: str
    demo_tokens: int
    variants: tuple[str, ...]
    earlier: list[dict[str, Any]]
    report: Callable[[str], None]

    @property
    def dtype(self) -> Any:
        """bfloat16; float32 on a CPU, which has no fast products of the other."""
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    def ceilings(self) -> tuple[float, float]:
        """Bytes a second of a copy on this machine, and operations a second of large matrix products: of a row, else
        measured now."""
        for row in self.earlier:
            if row["section"] == "copy" and "error" not in row:
                return row["bytes_a_second"], row["operations_a_second"]
        return copy_bandwidth(self.copied_bytes), product_rate(self.product_size, self.dtype)

    @property
    def product_size(self) -> int:
        """Rows of the square matrices that products are timed with: 8,192 beside a copy of 4 GiB."""
        return math.isqrt(self.copied_bytes // 64)


def machine(check: Check) -> Rows:
    """The driver and libraries, and which models' shapes the device's memory holds."""
    limit = memory_limit()
    yield {"driver": _driver(), "memory_limit": limit}
    try:  # an import of tokamax may be missing too
        yield {"library": "tokamax", "version": importlib.import_module("tokamax").__version__}
    except Exception as error:
        yield {"library": "tokamax", "missing": f"prefill runs tree_attention, tokamax does not import ({error})"}
    for name in shapes.NAMES:
        needed = needed_bytes("steps", name, LONGEST, jnp.dtype(jnp.bfloat16))
        fits = {} if limit is None else {"fits_here": needed <= limit}
        yield {"shapes": name, "needed_bytes": needed, "fits": where_it_fits(needed), **fits}


def copy(check: Check) -> Rows:
    """The ceilings of all other figures: of a copy, and of matrix products."""
    bandwidth, rate = copy_bandwidth(check.copied_bytes), product_rate(check.product_size, check.dtype)
    copied = {"bytes": check.copied_bytes, "bytes_a_second": bandwidth}
    yield copied | {"product_size": check.product_size, "operations_a_second": rate}


def kernels(check: Check) -> Rows:
    """Kernels against their definitions, in float64 or exactly, then their bandwidth by length."""
    yield from kernel_checks.check_kernels(check.dtype)
    yield from bookkeeping_checks.check_bookkeeping()
    yield from kernel_speed.by_length(shapes.config_of(check.model), check.lengths, check.dtype, check.ceilings()[0])


def steps(check: Check) -> Rows:
    """Iterations and prefill by length, compared with bytes over copy bandwidth."""
    config, (bandwidth, rate) = shapes.config_of(check.model), check.ceilings()
    model = random_model(config, check.dtype)
    for name in check.steps:
        for length in check.lengths:
            check.report(f"{name} after {length:,} tokens")
            timed = milliseconds_a_pass(filled_step(model, name, length, check.capacity))
            cost = roofline.step_cost(name, config, length, check.dtype.itemsize)
            yield {
                "step": name,
                "length": length,
                "bytes": cost.bytes,
                **timed,
                "floor_milliseconds": 1e3 * cost.floor(bandwidth, rate),
                "of_copy_bandwidth": cost.bytes / (timed["milliseconds"] / 1e3) / bandwidth,
                "operations_a_second": cost.operations / (timed["milliseconds"] / 1e3),
            }


def profile(check: Check) -> Rows:
    """Where the time of the steps goes after the first of the lengths, each kernel launched by itself."""
    model = random_model(shapes.config_of(check.model), check.dtype)
    for name in check.steps:
        yield from profiler.slowest(filled_step(model, name, check.lengths[0], check.capacity), name, check.lengths[0])


def profile_graphs(check: Check) -> Rows:
    """The same, as graphs: the gaps between kernels are those of a timed run."""
    model = random_model(shapes.config_of(check.model), check.dtype)
    # Without this option XLA launches kernel by kernel under the profiler.
    options = {"xla_enable_command_buffers_during_profiling": True} if jax.default_backend() == "gpu" else {}
    for name in check.steps:
        step = filled_step(model, name, check.lengths[0], check.capacity, options)
        yield from profiler.slowest(step, name, check.lengths[0])


def attention(check: Check) -> Rows:
    """Tree attention with other tiles than decoding's."""
    config = shapes.config_of(check.model)
    yield from tile_sweep.sweep(config, check.lengths, check.dtype, check.ceilings()[0])


def joined(check: Check) -> Rows:
    """Steps compiled in several ways; their profiles too where there are at least two ways."""
    profiled = check.variants[:2] if len(check.variants) > 1 else ()
    yield from variants.time_variants(shapes.config_of(check.model), check, profiled)


def demo(check: Check) -> Rows:
    """The bundled model end to end, each text audited and compared with the first."""
    yield from texts(check.demo_dtype, check.demo_tokens, check.report)


def random_texts(check: Check) -> Rows:
    """Long texts of random weights of the model's shapes, end to end."""
    prompt = check.demo_tokens if jax.default_backend() == "cpu" else PROMPT
    yield from long_texts(shapes.config_of(check.model), check.dtype, prompt, check.demo_tokens, check.report)


def transformers(check: Check) -> Rows:
    """transformers' generate on the same shapes."""
    yield from transformers_steps.transformers_steps(shapes.fields_of(check.model), check.lengths, check.report)


_ALL = (machine, copy, kernels, steps, profile, profile_graphs, attention, joined, demo, random_texts, transformers)
SECTIONS: dict[str, Callable[[Check], Rows]] = {each.__name__: each for each in _ALL}


def needed_bytes(section: str, model: str, capacity: int, dtype: Any) -> int:
    """Bytes that a section needs at once for a model's shapes and a cache of so many slots."""
    config = shapes.config_of(model)
    size = config.num_kv_heads * config.head_dim * dtype.itemsize
    if section == "attention":  # the cache, one layer of it in float64, the scores of 64 rows in float64
        return 2 * tile_sweep.LAYERS * size * capacity + 8 * 64 * config.num_heads * capacity * 6 + ROOM
    if section == "kernels":
        return 2 * kernel_speed.LAYERS * size * (capacity + ACCELERATOR_ROWS) + ROOM
    if section in ("steps", "profile", "profile_graphs", "joined"):
        return roofline.parameter_bytes(config, dtype.itemsize) + cache_bytes(config, 1, capacity, dtype) + ROOM
    if section == "random_texts":
        return roofline.parameter_bytes(config, dtype.itemsize) + cache_bytes(config, 8, 8192, dtype) + ROOM
    return ROOM


def where_it_fits(needed: int) -> str:
    """The devices that hold so many bytes, as words."""
    fitting = [name for name, holds in DEVICES.items() if needed <= holds]
    return " and ".join(fitting) or "no device of " + " and ".join(DEVICES)


def memory_limit() -> int | None:
    """Bytes that XLA may take of this machine's device; None where it does not tell."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("bytes_limit")


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
