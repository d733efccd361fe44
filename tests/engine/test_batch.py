"""A batch: every row is the text of the same call alone, no matter what its neighbours do; finished rows are frozen."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import small_models
from decoded import assert_same, decode, decode_batch, start
from speculations import SPECULATIONS

from tests.engine_fixture import part_of
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.draft_positions import DraftCache
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.merged_drafter import Calibration
from tokenswift_jax.speculate.ngram import NgramTable

_RANDOM = np.random.default_rng(4)
# Lengths on both sides of a draft cache of 64 slots.
PROMPTS = [_RANDOM.integers(0, small_models.VOCAB, length).tolist() for length in (3, 90, 31)]
SAMPLING = SamplingConfig(
    min_p=0.05, repetition_penalty=1.1, penalty_window=24, seed=9, sequence=5, suppress_tokens=(0,)
)
TOKENS = 200


@pytest.fixture(scope="module")
def model():
    """EOS is rare enough that rows end at different places, one of them at the cap."""
    return small_models.with_eos(small_models.successor_model(layers=1, certainty=6.0, context=0.8), 36)


@pytest.fixture(scope="module")
def alone(model):
    """Each row's text from plain decoding by itself."""
    sequences = range(SAMPLING.sequence, SAMPLING.sequence + 3)
    return [
        decode(model, prompt, replace(SAMPLING, sequence=sequence), max_new_tokens=TOKENS)
        for prompt, sequence in zip(PROMPTS, sequences, strict=True)
    ]


def test_rows_end_at_different_places(alone):
    lengths = [len(text.tokens) for text in alone]
    assert len(set(lengths)) == 3
    assert {text.finish for text in alone} == {"eos", "length"}


@pytest.mark.parametrize(
    "mode",
    [
        *("plain", "partial", "fused", "medusa", "selfspec", "ngram", "auto"),
        pytest.param("selfspec blocks", marks=pytest.mark.long),
    ],
)
def test_every_row_is_the_text_alone(model, alone, mode):
    texts = decode_batch(model, PROMPTS, SAMPLING, SPECULATIONS[mode], max_new_tokens=TOKENS)
    for text, single in zip(texts, alone, strict=True):
        assert_same(text.tokens, single.tokens)
        assert text.finish == single.finish
    if mode not in ("plain", "auto"):
        assert sum(sum(text.accepted_per_depth) for text in texts) > 10


def test_the_sequence_goes_with_the_row_not_with_the_slot(model, alone):
    shifted = replace(SAMPLING, sequence=SAMPLING.sequence + 1)
    texts = decode_batch(model, [*PROMPTS[1:], PROMPTS[0]], shifted, SPECULATIONS["fused"], max_new_tokens=TOKENS)
    assert_same(texts[0].tokens, alone[1].tokens)
    assert_same(texts[1].tokens, alone[2].tokens)
    assert texts[2].tokens != alone[0].tokens  # another sequence


def test_a_finished_row_is_frozen(model, alone):
    """Nothing of it changes but scratch: slots past the committed length, of the text and of the caches."""
    running = start(model, PROMPTS, SAMPLING, SPECULATIONS["partial"], max_new_tokens=TOKENS)
    before: dict[int, list[np.ndarray]] = {}
    compared = 0
    for _ in running:  # the state is that of the chunk under way
        state = jax.tree.map(np.array, running.state)  # copies: the buffers are donated to the next chunk
        for row in range(3):
            if state.finish[row] == Finish.RUNNING:
                continue
            kept_tokens = what_counts(state, row)
            if row in before:
                compared += 1
                for old, new in zip(before[row], kept_tokens, strict=True):
                    np.testing.assert_array_equal(old, new)
            before.setdefault(row, kept_tokens)
    assert compared >= 3
    assert len(before) == 3


def what_counts(state, row):
    """Everything of a row that later steps of a running row would read."""
    n = int(state.length[row])
    in_use = min(n, SPECULATIONS["partial"].draft_cache)
    ngrams, draft = part_of(state, NgramTable), part_of(state, DraftCache)
    return [
        state.tokens[row, : n + 1],
        state.length[row],
        state.finish[row],
        state.cache.keys[:, row, :, :n],
        state.cache.values[:, row, :, :n],
        state.hidden[row],
        state.query[:, row],
        state.last_positions[row],
        ngrams.entries[row],
        ngrams.inserted[row],
        part_of(state, Calibration).record[row],
        draft.cache.keys[:, row, :, :in_use],
        draft.cache.values[:, row, :, :in_use],
        draft.positions[:, row, :, :in_use],
        draft.selected[row],
    ]


def test_a_batch_may_be_resumed_with_rows_at_different_places(model, alone):
    """One row has ended, one is in the middle, one has nothing yet."""
    ended = min(range(3), key=lambda row: len(alone[row].tokens))
    emitted = [alone[row].tokens if row == ended else [] for row in range(3)]
    middle = (ended + 1) % 3
    emitted[middle] = alone[middle].tokens[:40]
    texts = decode_batch(model, PROMPTS, SAMPLING, SPECULATIONS["fused"], max_new_tokens=TOKENS, emitted=emitted)
    for row in range(3):
        assert_same(emitted[row] + texts[row].tokens, alone[row].tokens)
