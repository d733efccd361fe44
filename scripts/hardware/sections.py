"""The sections of a device check: each a generator of rows, small enough to be done in five minutes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hardware import (
    attention_sweep,
    kernel_checks,
    kernel_speed,
    peer,
    profiles,
    roofline,
    sampling,
    shapes,
    texts,
    variants,
)
from hardware.clock import copy_bandwidth, product_rate
from hardware.filled import filled_step, milliseconds_a_pass, random_model
from hardware.goals import held_against
from hardware.option_trial import trial
from hardware.replay import replayed

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """What is asked of every section.

    Attributes:
      model: name of the shapes (`shapes.NAMES`).
      lengths: committed tokens at which steps and kernels are timed.
      capacity: slots of the cache.
      copied_bytes: of the array that the copy bandwidth is measured with.
      steps: the iterations that are timed (of `steps.STEPS`).
      demo_modes: of the bundled model's texts (`texts.KINDS`).
      demo_dtypes: likewise; None is the model's own on this device.
      demo_tokens: written in each.
      replayed_tokens: of the text whose time is computed from the steps'.
      acceptances: shares of drafted tokens accepted, for that.
      options: of XLA that are tried out on the first of the steps (of `option_trial.OPTIONS`).
      maps: ways in which steps are compiled (of `variants.VARIANTS`).
      earlier: rows of sections done before, this process's or another's.
      report: says what is being done.
    """

    model: str
    lengths: tuple[int, ...]
    capacity: int
    copied_bytes: int
    steps: tuple[str, ...]
    demo_modes: tuple[str, ...]
    demo_dtypes: tuple[str | None, ...]
    demo_tokens: int
    replayed_tokens: int
    acceptances: tuple[float, ...]
    options: tuple[str, ...]
    maps: tuple[str, ...]
    earlier: list[dict[str, Any]]
    report: Callable[[str], None]

    @property
    def dtype(self) -> Any:
        """bfloat16; float32 on a CPU, which has no fast products of the other."""
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    def ceilings(self) -> tuple[float, float]:
        """Bytes a second of a copy on this machine, and operations a second of large matrix products; measured now
        where no row has them."""
        for row in self.earlier:
            if row["section"] == "copy" and "error" not in row:
                return row["bytes_a_second"], row["operations_a_second"]
        return copy_bandwidth(self.copied_bytes), product_rate(self.product_size, self.dtype)

    @property
    def product_size(self) -> int:
        """Rows of the square matrices that products are timed with: 8,192 beside a copy of 4 GiB."""
        return math.isqrt(self.copied_bytes // 64)


def copy(check: Check) -> Rows:
    """The ceilings that everything else is held against: of a copy, and of matrix products."""
    bandwidth, rate = copy_bandwidth(check.copied_bytes), product_rate(check.product_size, check.dtype)
    copied = {"bytes": check.copied_bytes, "bytes_a_second": bandwidth}
    yield copied | {"product_size": check.product_size, "operations_a_second": rate}


def kernels(check: Check) -> Rows:
    """Kernels against their definitions in float64, then their bandwidth by length."""
    yield from kernel_checks.against_definitions(check.dtype)
    yield from kernel_speed.by_length(shapes.config_of(check.model), check.lengths, check.dtype, check.ceilings()[0])


def steps(check: Check) -> Rows:
    """Plain decoding, speculative iterations and prefill by length, held against bytes over copy bandwidth."""
    config, (bandwidth, rate) = shapes.config_of(check.model), check.ceilings()
    model = random_model(config, check.dtype)
    for name in check.steps:
        for length in check.lengths:
            check.report(f"{name} after {length:,} tokens")
            timed = milliseconds_a_pass(filled_step(model, name, length, check.capacity))
            cost = roofline.step_cost(name, config, length, check.dtype.itemsize)
            yield {
                "model": check.model,
                "step": name,
                "length": length,
                "bytes": cost.bytes,
                **timed,
                "floor_milliseconds": 1e3 * cost.floor(bandwidth, rate),
                "of_copy_bandwidth": cost.bytes / (timed["milliseconds"] / 1e3) / bandwidth,
                "operations_a_second": cost.operations / (timed["milliseconds"] / 1e3),
            }


def profile(check: Check) -> Rows:
    """Where the time of every step goes after the second of the lengths: the operations that take most of it."""
    model = random_model(shapes.config_of(check.model), check.dtype)
    length = sorted(check.lengths)[min(1, len(check.lengths) - 1)]
    for name in check.steps:
        check.report(f"profile of {name} after {length:,} tokens")
        yield from profiles.slowest(filled_step(model, name, length, check.capacity), name, length)


def draws(check: Check) -> Rows:
    """The draws of 64 rows alone, and their share of the 64-row step measured at the shortest length."""
    vocab = shapes.config_of(check.model).vocab_size
    timed = [row for row in check.earlier if row["section"] == "steps" and row.get("step") == "verify-64"]
    whole = min(timed, key=lambda row: row["length"], default=None)
    for name, config in sampling.CASES.items():
        taken = sampling.milliseconds(64, vocab, config, repeats=9)
        row = {"case": name, "rows": 64, "vocab": vocab, "milliseconds": taken}
        yield row | ({"of_step_after": whole["length"], "share": taken / whole["milliseconds"]} if whole else {})


def replay(check: Check) -> Rows:
    """The time of a long text at stated acceptance rates: computed from the measured steps, not measured."""
    timed = [row for row in check.earlier if row["section"] == "steps" and "error" not in row]
    yield from replayed(timed, check.model, check.replayed_tokens, check.acceptances)


def options(check: Check) -> Rows:
    """The first of the steps at the first of the lengths, with and without options of XLA in turns."""
    model = random_model(shapes.config_of(check.model), check.dtype)
    for option in check.options:
        check.report(f"{check.steps[0]} with and without {option}")
        yield from trial(model, check.steps[0], check.lengths[0], check.capacity, option)


def attention(check: Check) -> Rows:
    """Tree attention with other tiles than decoding's."""
    config = shapes.config_of(check.model)
    yield from attention_sweep.swept(config, check.lengths, check.dtype, check.ceilings()[0])


def joined(check: Check) -> Rows:
    """Steps with joined linear maps, or apart, or both; their profiles too where both are asked for."""
    yield from variants.timed(
        shapes.config_of(check.model),
        check.steps,
        check.maps,
        check.lengths,
        check.capacity,
        check.dtype,
        check.ceilings(),
        profiled=check.maps[:2] if len(check.maps) > 1 else (),
    )


def goals(check: Check) -> Rows:
    """What the project set itself for one GPU, held against the rows of steps and replay."""
    yield from held_against(check.earlier)


def transformers(check: Check) -> Rows:
    """transformers' generate with a static cache, compiled, on the same shapes; says why where it cannot run."""
    yield from peer.rows(shapes.config_of(check.model), check.lengths, check.dtype, check.report)


def demo(check: Check) -> Rows:
    """The bundled model end to end in every mode, each text audited and compared with the first."""
    yield from texts.written(check.demo_modes, check.demo_dtypes, check.demo_tokens, check.report)


SECTIONS: dict[str, Callable[[Check], Rows]] = {
    "copy": copy,
    "kernels": kernels,
    "steps": steps,
    "profile": profile,
    "draws": draws,
    "options": options,
    "attention": attention,
    "joined": joined,
    "replay": replay,
    "goals": goals,
    "demo": demo,
    "transformers": transformers,
}
