"""The sections of a device check: each a generator of rows, small enough to be done in five minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tokenswift_jax as ts
from hardware import kernel_checks, kernel_speed, peer, profiles, roofline, sampling, shapes
from hardware.clock import copy_bandwidth
from hardware.filled import filled_step, milliseconds_a_pass, random_model
from hardware.goals import held_against
from tokenswift_jax.cli.generate import DEMO_PROMPT

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
      demo_modes: of the bundled model's texts.
      demo_tokens: written in each.
      replayed_tokens: of the text whose time is computed from the steps'.
      acceptances: shares of drafted tokens accepted, for that.
      earlier: rows of sections done before, this process's or another's.
      report: says what is being done.
    """

    model: str
    lengths: tuple[int, ...]
    capacity: int
    copied_bytes: int
    steps: tuple[str, ...]
    demo_modes: tuple[str, ...]
    demo_tokens: int
    replayed_tokens: int
    acceptances: tuple[float, ...]
    earlier: list[dict[str, Any]]
    report: Callable[[str], None]

    @property
    def dtype(self) -> Any:
        """bfloat16; float32 on a CPU, which has no fast products of the other."""
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)

    def bandwidth(self) -> float:
        """The copy bandwidth of this machine, bytes a second; measured now where no row has it."""
        for row in self.earlier:
            if row["section"] == "copy" and "error" not in row:
                return row["bytes_a_second"]
        return copy_bandwidth(self.copied_bytes)


def copy(check: Check) -> Rows:
    """The bandwidth that everything else is held against."""
    yield {"bytes": check.copied_bytes, "bytes_a_second": copy_bandwidth(check.copied_bytes)}


def kernels(check: Check) -> Rows:
    """Kernels against their definitions in float64, then their bandwidth by length."""
    yield from kernel_checks.against_definitions(check.dtype)
    yield from kernel_speed.by_length(shapes.config_of(check.model), check.lengths, check.dtype, check.bandwidth())


def steps(check: Check) -> Rows:
    """Plain decoding, speculative iterations and prefill by length, held against bytes over copy bandwidth."""
    config, bandwidth = shapes.config_of(check.model), check.bandwidth()
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
    measured = {
        (row["step"], row["length"]): row["milliseconds"]
        for row in check.earlier
        if row["section"] == "steps" and row["model"] == check.model
    }
    for name, depth in (("plain", 0), ("verify-16", 3), ("verify-64", 3), ("partial-16", 4)):
        points = sorted((length, cost) for (step, length), cost in measured.items() if step == name)
        if not points:
            continue
        for acceptance in check.acceptances if depth else (0.0,):
            tokens = 1 + depth * acceptance
            yield {
                "model": check.model,
                "step": name,
                "kind": "replayed: computed from measured step times and the stated acceptance",
                "acceptance_rate": acceptance,
                "tokens_a_pass": tokens,
                "tokens": check.replayed_tokens,
                "seconds": _integral(points, check.replayed_tokens) / tokens / 1e3,
            }


def goals(check: Check) -> Rows:
    """What the project set itself for one H200, held against the rows of steps and replay."""
    yield from held_against(check.earlier)


def transformers(check: Check) -> Rows:
    """transformers' generate with a static cache, compiled, on the same shapes; says why where it cannot run."""
    yield from peer.rows(shapes.config_of(check.model), check.lengths, check.dtype, check.report)


def demo(check: Check) -> Rows:
    """The bundled model end to end in every mode, each text audited and compared with plain decoding's."""
    model = ts.load()
    plain: list[int] = []
    for mode in check.demo_modes:
        check.report(f"demo: {mode}, {check.demo_tokens:,} tokens")
        begun = time.perf_counter()
        speculation = ts.SpeculationConfig(mode=mode, draft_cache=512)
        out = ts.generate(
            model, DEMO_PROMPT, None, speculation, max_new_tokens=check.demo_tokens, ignore_eos=True, audit=True
        )
        assert isinstance(out, ts.GenerationResult)
        plain = plain or out.token_ids
        yield {
            "mode": mode,
            "tokens": out.generated_tokens,
            "tokens_a_second": out.tokens_per_second,
            "tokens_a_pass": out.mean_accepted_length,
            "compile_seconds": out.compile_seconds,
            "wall_seconds": time.perf_counter() - begun,
            "dtype": out.dtype,
            "leading_tokens_of_autoregressive": _shared(out.token_ids, plain),
            "audit": out.audit,
            "audit_failed": out.audit_failed,
        }


SECTIONS: dict[str, Callable[[Check], Rows]] = {
    "copy": copy,
    "kernels": kernels,
    "steps": steps,
    "profile": profile,
    "draws": draws,
    "replay": replay,
    "goals": goals,
    "demo": demo,
    "transformers": transformers,
}


def _shared(ids: list[int], others: list[int]) -> int:
    """Leading tokens that two texts share."""
    return next((i for i, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other), len(ids))


def _integral(points: list[tuple[int, float]], tokens: int) -> float:
    """Milliseconds of a pass summed over lengths 0 .. tokens-1, linear between the points and level beyond them."""
    lengths, costs = zip(*points, strict=True)
    return float(np.interp(np.arange(tokens), lengths, costs).sum())
