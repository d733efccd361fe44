"""Held-out accuracy of heads against the plain definition in NumPy."""

from dataclasses import replace

import numpy as np
import pytest

import tokenswift_jax as ts
from tests.small_models import model_of, random_model, successor_model
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.accuracy import measure_accuracy


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize(("count", "length"), [(1, 5), (5, 150)])  # 5 windows: a group that must be filled up
def test_losses_and_hits_are_those_of_all_logits_at_once(count, length):
    model = random_model(24, spread=2.0, seed=3)
    windows = np.random.default_rng(0).integers(0, 24, (count, length), dtype=np.int32)
    heads = model.config.num_draft_heads
    logits = _log_softmax(ts.draft_logits(model, windows.tolist()))  # [:, t, j] guesses t + 1 + j
    rows = length - 1 - heads
    found = measure_accuracy(model, windows)
    assert found.positions == count * rows
    next_tokens = windows[:, 1 : 1 + rows, None]
    base = -np.take_along_axis(logits[:, :rows, 0], next_tokens, axis=-1).mean()
    # Sums of float32 logarithms: 1e-5 is a few hundred roundings.
    assert found.base_loss == pytest.approx(base, rel=1e-5)
    for i, head in enumerate(found.heads):
        scores, text = logits[:, :rows, 1 + i], windows[:, 2 + i : 2 + i + rows]
        target = logits[:, 1 + i : 1 + i + rows, 0]
        assert head.text_loss == pytest.approx(-np.take_along_axis(scores, text[..., None], -1).mean(), rel=1e-5)
        assert head.model_loss == pytest.approx(-(np.exp(target) * scores).sum(-1).mean(), rel=1e-5)
        order = np.argsort(-scores, axis=-1, kind="stable")
        for right, hits in ((text, head.text_top), (target.argmax(-1), head.model_top)):
            wanted = [(order[..., : k + 1] == right[..., None]).any(-1).mean() for k in range(3)]
            np.testing.assert_allclose(hits, wanted, atol=1e-12)


def test_heads_that_foresee_the_text_are_found_out():
    model = successor_model(32, context=0.0, certainty=12.0)
    text = [5]
    for _ in range(40):
        text.append(int(ts.score(model, [text[-1:]])[0, -1].argmax()))
    found = measure_accuracy(model, np.asarray([text], np.int32))
    assert found.base_loss < 0.1
    assert all(head.text_top[0] == head.model_top[0] == 1.0 for head in found.heads)
    wrong = measure_accuracy(model, np.asarray([text[::-1]], np.int32))
    assert all(head.text_top[0] < 0.1 and head.model_top[0] < 0.1 for head in wrong.heads)


def test_sequential_heads_read_the_text_they_are_given():
    model = random_model(24, seed=1)
    sequential = replace(model.config, draft_head_type="sequential")
    assert sequential.draft_head_type != model.config.draft_head_type
    rng = np.random.default_rng(5)
    model = model_of(sequential, lambda path, dims: rng.normal(0, 1.0 if len(dims) == 1 else 0.4, dims))
    windows = rng.integers(0, 24, (2, 30), dtype=np.int32)
    before = measure_accuracy(model, windows)
    logits = _log_softmax(ts.draft_logits(model, windows.tolist()))
    rows = 30 - 1 - 3
    for i, head in enumerate(before.heads):
        text = windows[:, 2 + i : 2 + i + rows, None]
        expected = -np.take_along_axis(logits[:, :rows, 1 + i], text, -1).mean()
        assert head.text_loss == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured_is_a_one_line_error():
    windows = np.zeros((1, 10), np.int32)
    with pytest.raises(UserError, match="no draft heads"):
        measure_accuracy(random_model(24, heads=0), windows)
    with pytest.raises(UserError, match="at least 5 tokens"):
        measure_accuracy(random_model(24), windows[:, :4])
    with pytest.raises(UserError, match="at least 5 tokens"):
        measure_accuracy(random_model(24), windows[:0])
