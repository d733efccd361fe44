"""The draws of a step alone, of any number of rows and any vocabulary, timed on this machine's device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from hardware.clock import seconds_of
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.params import SequenceParams, sequence_params
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
    logits: jax.Array, last: jax.Array, path: jax.Array, settings: SequenceParams, *, features: SamplingFeatures
) -> tuple[jax.Array, jax.Array]:
    """What a step draws for its rows, at depths 0 to `DEPTH` by turns, and whether their logits hold NaN."""
    length = jnp.full((1,), 4000, jnp.int32)
    positions = length[:, None] + jnp.arange(DEPTH + 1, dtype=jnp.int32)[None]
    sampled = features >= SamplingFeatures.SAMPLED
    noise = gumbel_noise(settings.keys, positions, logits.shape[-1]) if sampled else None
    depths = jnp.arange(logits.shape[1], dtype=jnp.int32)[None] % (DEPTH + 1)
    texts = TextInputs(length, last, noise, settings)
    return draw_rows(RowInputs(logits, depths, path), texts, features)


def milliseconds(rows: int, vocab: int, config: SamplingConfig, repeats: int) -> float:
    """Median of one step's draws here: normal logits of spread 2.5, a hundredth of the vocabulary in the window."""
    logits = 2.5 * jax.random.normal(jax.random.key(0), (1, rows, vocab))
    recent = jax.random.uniform(jax.random.key(1), (1, vocab)) < 0.01
    last = jnp.where(recent, jnp.int32(3990), jnp.int32(-(2**31)))
    path = jax.random.randint(jax.random.key(2), (1, rows, DEPTH), 0, vocab)
    settings = sequence_params(batch_of([[0] * 4000], config, max_new_tokens=1), vocab)
    function = jax.jit(partial(draws, features=features_of(config)))
    return 1e3 * seconds_of(lambda: function(logits, last, path, settings), repeats)
