"""The scores of continuations are those of `score_tokens`, and no other text of the same forward changes them."""

import numpy as np
import pytest

from tests.tiny import tiny_config, tiny_model
from tokenswift_jax.errors import UserError
from tokenswift_jax.harness.continuations import _batches, _Text, continuation_scores
from tokenswift_jax.scoring import score_tokens

MODEL = tiny_model(tiny_config())


def ids(length, seed):
    return np.random.default_rng(seed).integers(1, 60, length).tolist()


def likeliest(context, count):
    """The greedy continuation of `count` tokens."""
    text = list(context)
    for _ in range(count):
        (scored,) = score_tokens(MODEL, [[*text, 0]], top=1)
        text.append(int(scored.top_ids[-1, 0]))
    return text[len(context) :]


# Lengths on both sides of a forward's 32, 64 and 256 rows; one token before a continuation, and one in it.
PAIRS = [
    (ids(1, 0), ids(1, 1)),
    (ids(30, 2), ids(2, 3)),
    (ids(31, 4), ids(2, 5)),
    (ids(40, 6), ids(9, 7)),
    (ids(250, 8), ids(40, 9)),
    (ids(520, 14), ids(40, 15)),
    (ids(600, 16), ids(3, 17)),
    (ids(20, 10), likeliest(ids(20, 10), 3)),
    *[(ids(20, 11), [letter]) for letter in (3, 5, 7, *likeliest(ids(20, 11), 1))],
    *[(ids(12, 12), [*ids(3, 13), letter]) for letter in (3, 5)],
    ([*ids(12, 12), *ids(3, 13)], [3]),  # the text of the one before, with another border
]


@pytest.fixture(scope="module")
def expected():
    scored = [score_tokens(MODEL, [[*context, *continuation]])[0] for context, continuation in PAIRS]
    return [
        (float(one.logprobs[len(context) - 1 :].sum()), bool(one.greedy[len(context) - 1 :].all()))
        for one, (context, _) in zip(scored, PAIRS, strict=True)
    ]


@pytest.mark.parametrize(("rows", "most"), [(1, None), (128, None), (2048, 2)])
def test_scores_are_those_of_each_text_alone(expected, rows, most):
    done = []
    found = continuation_scores(MODEL, PAIRS, rows, most, done.append)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert any(greedy for _, greedy in found)
    assert not all(greedy for _, greedy in found)
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], rtol=0, atol=1e-4)
    assert sorted(number for answers in done for number in answers) == list(range(len(PAIRS)))


def test_texts_that_differ_in_their_last_token_are_computed_once(monkeypatch):
    computed = []
    module = "tokenswift_jax.harness.continuations"
    original = __import__(module, fromlist=["teacher_forced"]).teacher_forced
    monkeypatch.setattr(
        f"{module}.teacher_forced", lambda model, texts, rows: computed.extend(texts) or original(model, texts, rows)
    )
    context = ids(20, 11)
    continuation_scores(MODEL, [(context, [letter]) for letter in (3, 5, 7, 9, 3, 3)], 2048)
    assert computed == [context]
    del computed[:]
    continuation_scores(MODEL, [(context, [letter]) for letter in range(1, 19)], 2048)
    assert computed == [context, context]  # a program has 16 columns at most


def test_forwards_have_few_shapes_and_begin_with_the_longest():
    texts = [_Text([0] * length) for length in (1, 32, 33, 64, 65, 300, 600, 20)]
    batches = [([len(text.ids) for text in batch], width) for batch, width in _batches(texts, 512, None)]
    assert batches == [([600], 768), ([300], 512), ([65], 96), ([64], 64), ([33], 48), ([1, 32], 32), ([20], 32)]
    assert max(len(batch) for batch, _ in _batches(texts, 4096, 3)) == 2


def test_a_text_longer_than_the_positions_is_an_error():
    model = tiny_model(tiny_config(max_position_embeddings=64))
    with pytest.raises(UserError, match="holds 1 to 64 tokens"):
        continuation_scores(model, [(ids(64, 0), ids(2, 1))], 256)
