"""Switches between plans within a text: the n-gram table is the one that the text gives, whichever plans wrote it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoded import assert_same
from test_engine import alone, model, named_plans, new_engine, request

from tests.engine_fixture import part_of
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.speculate import ngram, ngram_fill
from tokenswift_jax.speculate.merged_drafter import Calibration
from tokenswift_jax.speculate.ngram import NgramTable

ROWS = (1, 3, 6)


@functools.cache
def _filled(slots):
    return jax.jit(lambda tokens, end: ngram_fill.fill(ngram.empty(len(ROWS), tokens.shape[1], slots), tokens, end))


def expected_table(state, slots):
    """The table of the committed text, filled at once."""
    settings = sequence_params([request(index) for index in ROWS], model().config.vocab_size)
    return _filled(slots)(jnp.asarray(state.tokens), jnp.asarray(state.length) - settings.ngram_lag)


@pytest.mark.parametrize(
    "order", [("fused", "plain", "partial", "fused", "ngram"), ("ngram", "partial", "plain", "fused")]
)
def test_the_table_after_any_plans(order):
    engine = new_engine()
    first = engine.insert(engine.prefill([request(index) for index in ROWS])).result()
    texts = [first.records[row, : first.counts[row], 0].tolist() for row in range(len(ROWS))]
    record = None
    for mode in order:
        named = named_plans()[mode]
        engine.prepare(named)
        result = engine.step(named, 3).result()
        for row, text in enumerate(texts):
            text += result.records[row, : result.counts[row], 0].tolist()
        state = jax.tree.map(np.array, engine.state)  # copies: the buffers are donated to the next chunk
        table, seen = part_of(state, NgramTable), part_of(state, Calibration).record
        if mode == "plain":
            np.testing.assert_array_equal(seen, record)
        else:
            oracle = expected_table(state, table.slots)
            np.testing.assert_array_equal(table.entries, oracle.entries)
            assert (table.entries > 0).any()
        record = seen
    assert record.any(), "no n-gram was ever observed"
    for index, text in zip(ROWS, texts, strict=True):
        assert_same(text, alone(index).tokens[: len(text)])
    engine.close()
