"""The draws of a step alone, of any number of rows and any vocabulary, timed on this machine's device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from hardware.clock import seconds_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.processors import Processors, SamplingInputs, processors_for, sampling_inputs
from tokenswift_jax.sample.sampler import RowInputs, TextInputs, draw_rows
from tokenswift_jax.sampling import SamplingConfig

CASES = {
    "temperature 0": SamplingConfig(temperature=0.0),
    "temperature 1": SamplingConfig(),
    "min-p, penalty": SamplingConfig(min_p=0.1, repetition_penalty=1.2, penalty_window=1024),
    "top-k": SamplingConfig(top_k=50),
    "top-p": SamplingConfig(top_p=0.9),
    "top-k, top-p, penalty": SamplingConfig(top_k=50, top_p=0.9, repetition_penalty=1.2, penalty_window=1024),
}
DEPTH = 4  # of the rows' tree


def draws(
    logits: jax.Array, last: jax.Array, path: jax.Array, inputs: SamplingInputs, *, processors: Processors
) -> tuple[jax.Array, jax.Array]:
    """What a step draws for its rows, at depths 0 to `DEPTH` by turns, and whether their logits hold NaN."""
    length = jnp.full((1,), 4000, jnp.int32)
    positions = length[:, None] + jnp.arange(DEPTH + 1, dtype=jnp.int32)[None]
    noise = gumbel_noise(inputs.keys, positions, logits.shape[-1]) if processors.sample else None
    depths = jnp.arange(logits.shape[1], dtype=jnp.int32)[None] % (DEPTH + 1)
    texts = TextInputs(length, length, last if processors.penalty else None, noise)
    return draw_rows(RowInputs(logits, depths, path), texts, inputs, processors)


def milliseconds(rows: int, vocab: int, config: SamplingConfig, repeats: int) -> float:
    """Median of one step's draws here: normal logits of spread 2.5, a hundredth of the vocabulary in the window."""
    logits = 2.5 * jax.random.normal(jax.random.key(0), (1, rows, vocab))
    recent = jax.random.uniform(jax.random.key(1), (1, vocab)) < 0.01
    last = jnp.where(recent, jnp.int32(3990), jnp.int32(-(2**31)))
    path = jax.random.randint(jax.random.key(2), (1, rows, DEPTH), 0, vocab)
    inputs = sampling_inputs(config, vocab=vocab, batch=1)
    function = jax.jit(partial(draws, processors=processors_for(config)))
    return 1e3 * seconds_of(lambda: function(logits, last, path, inputs), repeats)
