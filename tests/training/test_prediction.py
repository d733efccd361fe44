"""Predicted tokens per iteration are those that `generate` then measures."""

from dataclasses import replace

import numpy as np
import pytest

import tokenswift_jax as ts
from tests.small_models import VOCAB, successor_model, with_eos
from tokenswift_jax.errors import UserError
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.models.node_sets import NodeSets
from tokenswift_jax.training.prediction import Continuations, Replay, write_continuations

NODES = ((0,), (0, 0), (1,), (0, 0, 0), (0, 1), (1, 0))
SPECULATION = ts.SpeculationConfig(mode="tokenswift", schedule="fused", ngram_k=4)


def _prompts(count=3, length=20):
    return np.random.default_rng(0).integers(0, VOCAB, (count, length)).tolist()


def _measured(model, continuations, speculation, tokens):
    """(iterations, accepted per position, tokens per iteration) of the real thing, on the very same text."""
    results = ts.generate(
        model, [list(p) for p in continuations.prompts], continuations.sampling, speculation, max_new_tokens=tokens
    )
    assert [tuple(result.token_ids) for result in results] == list(continuations.tokens)
    depth = max(len(result.accepted_per_position) for result in results)
    accepted = [sum((r.accepted_per_position + [0] * depth)[d] for r in results) for d in range(depth)]
    iterations = sum(result.iterations for result in results)
    return iterations, np.trim_zeros(accepted, "b"), sum(r.accepted_tokens for r in results) / iterations + 1


@pytest.mark.parametrize(
    ("head_type", "speculation", "sampling"),
    [
        # n-grams and a budget; texts of unlike lengths, for token 3 ends them
        ("chained", {"node_budget": 7}, {"temperature": 0.0}),
        ("chained", {"schedule": "partial", "node_budget": 12}, {"min_p": 0.05}),
        # the window slides within a path, and lets n-grams in late
        ("sequential", {"node_budget": 9}, {"repetition_penalty": 1.3, "penalty_window": 16, "top_p": 0.95}),
        ("node set", {"schedule": "partial", "ngram_k": 0}, {"temperature": 0.7}),
    ],
)
def test_the_replay_accepts_what_decoding_accepts(head_type, speculation, sampling):
    if head_type == "node set":
        model = successor_model(cycle=12, node_sets=NodeSets(partial=NODES))
    else:
        model = with_eos(successor_model(cycle=12, head_type=head_type), 3)
    sampling, speculation = ts.SamplingConfig(seed=3, **sampling), replace(SPECULATION, **speculation)
    continuations = write_continuations(model, _prompts(), sampling, 60)
    found = Replay(model, continuations).predict(speculation)
    iterations, accepted, expected = _measured(model, continuations, speculation, 60)
    assert found.expected_tokens > 1.3  # drafts are accepted, so there is something to get wrong
    # Exactly: in float32 rounding could only swap candidates that are all but tied.
    assert (found.iterations, list(found.accepted_per_position)) == (iterations, accepted)
    assert found.expected_tokens == pytest.approx(expected, abs=1e-12)
    assert found.tokens == sum(len(tokens) - 1 for tokens in continuations.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "temperature"), [("fused", 1.0), ("partial", 0.0)])
def test_the_demo_models_prediction_is_what_generate_measures(schedule, temperature):
    model = ts.load(DEMO_MODEL)
    text = (
        "The road that led down to the village was covered with leaves, and the old man walked slowly, leaning upon "
        "his stick. It was late in the autumn, and the evening came early. He had been away for many years, and he did "
        "not know whether anybody would remember him; the house of his father had long been sold, and strangers lived "
        "in it. He stopped at the bridge, and looked at the water."
    )
    ids = model.tokenizer(text)["input_ids"]
    prompts = [ids[:40], ids[40:80]]
    speculation = replace(SPECULATION, schedule=schedule, node_budget=15, ngram_k=8)
    continuations = write_continuations(model, prompts, ts.SamplingConfig(temperature=temperature, seed=1), 64)
    found = Replay(model, continuations).predict(speculation)
    _, _, expected = _measured(model, continuations, speculation, 64)
    # The promise is 10%; what is left of it is candidates that rounding may swap: one in a hundred iterations or fewer.
    assert found.expected_tokens == pytest.approx(expected, rel=0.01)
    assert found.expected_tokens > 1.2


def test_a_text_of_one_token_has_no_iterations():
    model = successor_model(cycle=12)
    continuations = Continuations(ts.SamplingConfig(temperature=0.0), ((1, 2, 3),), ((4,),))
    found = Replay(model, continuations).predict(replace(SPECULATION, ngram_k=0))
    assert np.isnan(found.expected_tokens)
    assert (found.iterations, found.tokens, found.accepted_per_position) == (0, 0, ())


def test_what_cannot_be_predicted_is_a_one_line_error():
    model = successor_model(cycle=12)
    continuations = Continuations(ts.SamplingConfig(temperature=0.0), (tuple(range(30)),), ((4, 5, 6, 7),))
    replay = Replay(model, continuations)
    for mode in ("tokenswift", "selfspec", "auto"):
        with pytest.raises(UserError, match="cannot be predicted"):
            replay.predict(SPECULATION.with_mode(mode, "auto"))
    small = replace(SPECULATION, schedule="partial", draft_cache=33, draft_sinks=4)
    with pytest.raises(UserError, match="a text of 34 tokens exceeds the draft cache of 33"):
        replay.predict(small)
    with pytest.raises(UserError, match="needs draft heads"):
        Replay(successor_model(heads=0), continuations).predict(SPECULATION)
