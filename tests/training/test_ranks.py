"""Ranks of the target's draws: against logits and noise in NumPy, and against replayed iterations."""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import tokenswift_jax as ts
from tests.small_models import VOCAB, random_model, successor_model
from tokenswift_jax.errors import UserError
from tokenswift_jax.sample.gumbel import gumbel_noise, row_keys
from tokenswift_jax.training.node_search import expected_tokens
from tokenswift_jax.training.prediction import Continuations, Replay, write_continuations
from tokenswift_jax.training.ranks import measure_ranks

PROMPTS = np.random.default_rng(0).integers(0, VOCAB, (2, 9)).tolist()
WIDTH = 5


@pytest.mark.parametrize("schedule", ["partial", "fused"])
@pytest.mark.parametrize("head_type", ["chained", "sequential"])
def test_ranks_are_those_of_the_heads_logits_with_the_shared_noise(head_type, schedule):
    model = random_model(VOCAB, head_type=head_type)
    sampling = ts.SamplingConfig(temperature=0.8, seed=5, sequence=2)
    replay = Replay(model, write_continuations(model, PROMPTS, sampling, 45))
    found = measure_ranks(model, replay, schedule, WIDTH)
    keys = row_keys(5, jnp.asarray([2, 3], jnp.uint32))
    for row, text in enumerate(replay.continuations.texts):
        logits = ts.draft_logits(model, [text])[0]  # [t, j] guesses t + 1 + j
        noise = np.asarray(gumbel_noise(keys[row : row + 1], jnp.arange(len(text), dtype=jnp.int32)[None], VOCAB))[0]
        wanted = np.full((44, 3 + (schedule == "partial")), WIDTH)
        for root in range(9, len(text) - 1):
            for depth in range(1, min(wanted.shape[1], len(text) - 1 - root) + 1):
                source = logits[root, depth - 1] if schedule == "partial" else logits[root - 1, depth]
                order = np.argsort(-(source / 0.8 + noise[root + depth]), kind="stable")
                wanted[root - 9, depth - 1] = min(order.tolist().index(text[root + depth]), WIDTH)
        np.testing.assert_array_equal(found[row], wanted)
        assert (found[row][:, -1] < WIDTH).any()
        if schedule == "partial":
            assert (found[row][:, 0] == 0).all()


@pytest.mark.parametrize("schedule", ["partial", "fused"])
def test_along_ranks_a_whole_tree_accepts_what_its_replay_accepts(schedule):
    model = successor_model(cycle=12)
    sampling = ts.SamplingConfig(min_p=0.05, repetition_penalty=1.2, penalty_window=10, seed=1)
    replay = Replay(model, write_continuations(model, PROMPTS, sampling, 50))
    asked = ts.SpeculationConfig(mode="tokenswift", schedule=schedule, ngram_k=0, tree=(1, 3, 3, 3))
    widths = (1, 3, 3, 3) if schedule == "partial" else (3, 3, 3)
    nodes = [path for d in range(1, len(widths) + 1) for path in itertools.product(*map(range, widths[:d]))]
    found = expected_tokens(measure_ranks(model, replay, schedule, WIDTH), nodes)
    prediction = replay.predict(asked)
    assert prediction.expected_tokens > 1.5
    # A chance of nothing: filtered candidates are no nodes, and no draw either. The replay cuts a text's last run by
    # the same tokens.
    assert found == pytest.approx(prediction.expected_tokens, abs=1e-12)


TEXT = (
    "The road that led down to the village was covered with leaves, and the old man walked slowly, leaning upon his "
    "stick. It was late in the autumn, and the evening came early."
)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["partial", "fused"])
def test_along_a_real_text_ranks_tell_the_drafts_that_the_engine_accepts(schedule):
    """The demo model's text after a sentence, at temperature 1; the engine drafts whole trees of the heads."""
    model = ts.load()
    prompt, sampling = model.tokenizer(TEXT)["input_ids"], ts.SamplingConfig(temperature=1.0, seed=2)
    asked = ts.SpeculationConfig(mode="tokenswift", schedule=schedule, ngram_k=0, tree=(1, 2, 2, 2))
    result = ts.generate(model, prompt, sampling, asked, max_new_tokens=48, ignore_eos=True)
    replay = Replay(model, Continuations(sampling, (tuple(prompt),), (tuple(result.token_ids),)))
    widths = (1, 2, 2, 2) if schedule == "partial" else (2, 2, 2)
    nodes = [path for d in range(1, len(widths) + 1) for path in itertools.product(*map(range, widths[:d]))]
    found = expected_tokens(measure_ranks(model, replay, schedule), nodes)
    assert found > 1.3
    assert found == pytest.approx(47 / result.iterations, abs=1e-12)


def test_a_checkpoint_without_heads_is_a_one_line_error():
    model = successor_model(cycle=12)
    replay = Replay(model, write_continuations(model, PROMPTS, ts.SamplingConfig(temperature=0.0), 4))
    with pytest.raises(UserError, match="no draft heads"):
        measure_ranks(replace(model, config=replace(model.config, num_draft_heads=0)), replay, "fused")
