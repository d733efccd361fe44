"""Steps with random weights and a random cache of any length: real enough to be timed."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax.engine.compile_cache import COMPILER_OPTIONS, CompileCache
from tokenswift_jax.hardware import steps
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.step.loop import compiled

CALLS = 6  # calls of a step; the first is not timed
ITERATIONS = 31  # of a call, as many as decoding asks for at a time
CHUNKS = 4  # of a prompt


@dataclass(frozen=True)
class RandomModel:
    """A model's configuration and random parameters of its shapes.

    Attributes:
      config: the decoder's.
      params: its parameters on the device.
      dtype: of weights and activations.
      join: whether linear maps of the same rows are one (`models.joined`).
    """

    config: ModelConfig
    params: Any
    dtype: Any
    join: bool = False


def random_model(config: ModelConfig, dtype: Any, join: bool | None = None) -> RandomModel:
    """Parameters drawn on the device, one shape at a time, so that nothing but them takes memory.

    join None: as decoding has them on this machine.
    """
    join = jax.default_backend() == "gpu" if join is None else join
    leaves, structure = jax.tree.flatten(steps.decoder_shapes(config, dtype, join)[1])
    filled = [_weights(leaf.shape, jnp.dtype(leaf.dtype), jnp.uint32(index)) for index, leaf in enumerate(leaves)]
    return RandomModel(config, jax.tree.unflatten(structure, filled), dtype, join)


@dataclass(frozen=True)
class FilledStep:
    """A step with its arguments.

    Attributes:
      executable: compiled.
      call: runs some passes of it and waits for them; returns how many it ran, and the tokens they were worth.
    """

    executable: Any
    call: Callable[[], tuple[int, int]]


def milliseconds_a_pass(step: FilledStep) -> dict[str, float]:
    """A step's time an iteration, and how many tokens an iteration emitted or, of a prompt, took in."""
    times, tokens, passes = [], 0, 0
    for call in range(CALLS):
        begun = time.perf_counter()
        done, new = step.call()
        if call:
            times.append(1e3 * (time.perf_counter() - begun) / done)
            tokens, passes = tokens + new, passes + done
    return {"milliseconds": statistics.median(times), "tokens_a_pass": tokens / passes}


def filled_step(
    model: RandomModel, name: str, length: int, capacity: int, options: dict[str, Any] | None = None
) -> FilledStep:
    """A step (of `steps.STEPS`, drafting alone excepted) after `length` tokens.

    `options`, of XLA, are added to decoding's own: for a step of decoding.
    """
    step = _step(name, model.config, capacity, model.dtype, model.join)
    if step.plan is None:
        return _prefill(model, step, length)
    return _decoding(model, step, step.plan, length, capacity, options or {})


def _prefill(model: RandomModel, step: steps.Step, length: int) -> FilledStep:
    tokens = jnp.zeros((1, step.rows), jnp.int32)
    begin, shapes = jnp.int32(length), steps.cache_of(step)
    numbers = shapes.numbers and tuple(jnp.int32(layer) for layer in range(len(shapes.numbers)))
    cache = FullCache(_random(shapes.keys, 1), _random(shapes.values, 2), numbers=numbers)
    function = CompileCache().compile(step.function, model.params, tokens, begin, cache)

    def call() -> tuple[int, int]:
        nonlocal cache
        for _ in range(CHUNKS):
            cache = function(model.params, tokens, begin, cache)
        jax.block_until_ready(cache)
        return CHUNKS, CHUNKS * step.rows

    return FilledStep(function, call)


def _decoding(
    model: RandomModel, step: steps.Step, plan: Plan, length: int, capacity: int, options: dict[str, Any]
) -> FilledStep:
    started = _Started(model, plan, length, capacity)
    arguments = started.inputs, started.state, jnp.int32(ITERATIONS)
    if options:
        ours = COMPILER_OPTIONS.get(jax.default_backend(), {})
        function = step.function.lower(*arguments).compile(compiler_options={**ours, **options})
    else:
        function = CompileCache().compile(step.function, *arguments)
    return FilledStep(function, functools.partial(started.run, function))


def continued(model: RandomModel, name: str, length: int, capacity: int, executable: Any) -> FilledStep:
    """A compiled step of decoding after `length` tokens."""
    plan = _step(name, model.config, capacity, model.dtype, model.join).plan
    assert plan is not None, f"{name} is no step of decoding"
    return FilledStep(executable, functools.partial(_Started(model, plan, length, capacity).run, executable))


class _Started:
    """A text that has come to some length, and goes on with every call.

    Attributes:
      inputs: of every iteration.
      state: after the last call; the one before it was donated.
    """

    def __init__(self, model: RandomModel, plan: Plan, length: int, capacity: int) -> None:
        blank = jax.jit(lambda: steps.first_call(plan, None, jnp.dtype(model.dtype), 1, capacity))
        inputs, state = blank()
        self.inputs = replace(inputs, params=model.params)
        filled = []
        # One after the other. Without this, a blank and a random cache are in memory at once (17 GB more for an 8B).
        for seed, array in enumerate((state.cache.keys, state.cache.values), start=1):
            shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
            array.delete()
            filled.append(_random(shape, seed))
        cache = replace(state.cache, **dict(zip(("keys", "values"), filled, strict=True)))
        self.state = replace(state, cache=cache, length=jnp.full_like(state.length, length))
        if plan.drafter.parts:
            self.state = compiled("catch_up", None, plan.config, plan.drafter)(self.inputs.sequence, self.state)

    def run(self, function: Any) -> tuple[int, int]:
        """Iterations of one call, and the tokens they were worth."""
        self.state, chunk = function(self.inputs, self.state, jnp.int32(ITERATIONS))
        return int(chunk.iterations), int(np.asarray(chunk.counts)[0])


@functools.cache
def _step(name: str, config: ModelConfig, capacity: int, dtype: Any, join: bool) -> steps.Step:
    """Kept, so that one executable serves all lengths."""
    return steps.step_named(name, config, capacity, dtype, join=join)


def _random(leaf: Any, seed: int) -> jax.Array:
    return _drawn(leaf.shape, jnp.dtype(leaf.dtype), jnp.uint32(seed))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn(shape: tuple[int, ...], dtype: Any, seed: jax.Array) -> jax.Array:
    """Normal numbers, by a layer of the stack at a time: no wide copy of all."""
    keys = jax.random.split(jax.random.key(seed), shape[0])
    return jax.lax.map(lambda key: jax.random.normal(key, shape[1:], dtype), keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _weights(shape: tuple[int, ...], dtype: Any, seed: jax.Array) -> jax.Array:
    """Normal numbers of the size that trained weights have."""
    scale = jnp.asarray(1.0 if len(shape) == 1 else 0.02, dtype)
    return jax.random.normal(jax.random.key(seed), shape, dtype) * scale
