"""Draws of a step's rows: a few rows at a time draw what all at once do, in a fraction of the logits' memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.engine_fixture import settings_of
from tokenswift_jax.sample import penalty, sampler
from tokenswift_jax.sample.draw import draw
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.processors import process
from tokenswift_jax.sample.sampler import LogitsBatch, SamplingContext, draw_rows
from tokenswift_jax.sampling import SamplingConfig

BATCH, ROWS, VOCAB, DEPTH = 2, 7, 90, 3
FILTERED = SamplingConfig(temperature=0.8, top_p=0.9, repetition_penalty=1.3, penalty_window=9, suppress_tokens=(4,))
GREEDY = SamplingConfig(temperature=0.0, repetition_penalty=1.3, penalty_window=9)


def problem(config, seed=0):
    """The arguments of `draw_rows`; row 2 of text 1 holds a NaN."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(BATCH, ROWS, VOCAB)).astype(np.float32)
    logits[1, 2, 50] = np.nan
    last = np.where(rng.random((BATCH, VOCAB)) < 0.3, rng.integers(0, 20, (BATCH, VOCAB)), -(2**31))
    length = jnp.asarray([20, 26], jnp.int32)
    settings = settings_of(config, vocab=VOCAB, batch=BATCH)
    settings = dataclasses.replace(settings, prompt_length=length - 5)
    noise = jnp.asarray(rng.gumbel(size=(BATCH, DEPTH + 1, VOCAB)), jnp.float32) if config.temperature else None
    rows = LogitsBatch(
        jnp.asarray(logits),
        jnp.asarray(rng.integers(0, DEPTH + 1, (BATCH, ROWS)), jnp.int32),
        jnp.asarray(rng.integers(0, VOCAB, (BATCH, ROWS, DEPTH)), jnp.int32),
    )
    return rows, SamplingContext(length, jnp.asarray(last, jnp.int32), noise, settings), features_of(config)


def whole(rows, context, features):
    """The definition: masks and noise of the logits' size."""
    penalised = penalty.row_penalised(
        context.last_positions, context.next_position, rows.path_tokens, rows.depths, context.settings.penalty_window
    )
    scores = process(
        rows.logits, penalised=penalised, generated=5 + rows.depths, settings=context.settings, features=features
    )
    noise = context.noise
    if noise is not None:
        noise = jnp.take_along_axis(noise, rows.depths[:, :, None], axis=1)
    return draw(scores, noise), jnp.isnan(rows.logits).any(axis=-1)


@pytest.mark.parametrize("config", [FILTERED, GREEDY], ids=["filtered", "greedy"])
def test_blocks_draw_what_all_rows_at_once_draw(config, monkeypatch):
    """7 rows in blocks of 3: the last block draws two rows again."""
    arguments = problem(config)
    expected = jax.jit(whole, static_argnums=2)(*arguments)
    assert np.asarray(expected[1]).nonzero() == (np.array([1]), np.array([2]))
    monkeypatch.setattr(sampler, "_BLOCK", 3 * VOCAB)
    drawn = jax.jit(lambda *given: draw_rows(*given, arguments[2]))(*arguments[:2])
    numbers = ~np.asarray(expected[1])
    np.testing.assert_array_equal(drawn[0][numbers], expected[0][numbers])
    np.testing.assert_array_equal(drawn[1], expected[1])


def test_a_wide_vocabulary_needs_a_fraction_of_the_logits():
    """64 rows of 151,936 tokens, penalty and nucleus; logits and noise included; compiled only.

    Temporary are the logits, once; on CPU a block of 6 rows in about five forms (perturbed, its highest spread out,
    ids, masks, weights), 6 / 64 of the logits each; and the noise of 5 depths, which needs twice its size to be made,
    5 / 64 each. In all at most 1.6 of the logits: 1.75 leaves room for forms of a block, none for another copy.
    """
    rows, vocab, size, depth = 64, 151_936, 8, 4
    inputs = settings_of(FILTERED, vocab=vocab)

    def step(hidden, head, last, depths, path, settings):
        logits = hidden @ head
        length = jnp.full((1,), 50, jnp.int32)
        ahead = jnp.arange(depth + 1, dtype=jnp.int32)
        noise = gumbel_noise(settings.keys, length[:, None] + ahead[None], vocab)
        context = SamplingContext(length, last, noise, settings)
        return draw_rows(LogitsBatch(logits, depths, path), context, features_of(FILTERED))

    real = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, rows, size), (size, vocab))]
    ints = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, vocab), (1, rows), (1, rows, depth))]
    lowered = jax.jit(step).lower(*real, *ints, inputs)
    memory = lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).memory_analysis()
    logits = rows * vocab * 4
    assert logits < memory.temp_size_in_bytes < 1.75 * logits
