"""Log-probabilities that come with the tokens are those of teacher-forced scoring, in every mode."""

import json
from dataclasses import replace

import numpy as np
import pytest
import small_models
from speculations import SPECULATIONS

import tokenswift_jax as ts
from tokenswift_jax.audit.logprobs import replayed_logprobs
from tokenswift_jax.cli.generate import main
from tokenswift_jax.request import Request
from tokenswift_jax.sample.logprobs import LogprobSpec

TOP = 4
PROMPT = [3, 9, 14, 22, 5]
SAMPLING = ts.SamplingConfig(
    temperature=0.8, top_k=9, repetition_penalty=1.2, penalty_window=20, suppress_tokens=(2,), seed=5
)


@pytest.fixture(scope="module")
def model():
    return small_models.successor_model(layers=1)


def log_softmax(logits):
    wide = np.asarray(logits, np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("mode", ["plain", "fused", "partial", "ngram", "selfspec", "auto"])
def test_they_are_those_of_teacher_forced_scoring(model, mode):
    out = ts.generate(model, PROMPT, SAMPLING, SPECULATIONS[mode], max_new_tokens=80, logprobs=TOP)
    text = PROMPT + out.token_ids
    expected = log_softmax(ts.score(model, [text])[0, len(PROMPT) - 1 : -1])
    assert [entry.token_id for entry in out.logprobs] == out.token_ids
    own = expected[np.arange(len(out.token_ids)), out.token_ids]
    np.testing.assert_allclose([entry.logprob for entry in out.logprobs], own, atol=2e-5)
    for entry, row in zip(out.logprobs, expected, strict=True):
        best = np.argsort(-row, kind="stable")[:TOP]
        np.testing.assert_allclose([value for _, value in entry.top], row[best], atol=2e-5)
        for token, value in entry.top:
            assert abs(row[token] - value) < 2e-5
    assert "logprobs" in out.to_dict()


def test_asking_for_them_changes_no_token(model):
    plain = ts.generate(model, PROMPT, SAMPLING, SPECULATIONS["fused"], max_new_tokens=80)
    asked = ts.generate(model, PROMPT, SAMPLING, SPECULATIONS["fused"], max_new_tokens=80, logprobs=0)
    assert asked.token_ids == plain.token_ids
    assert plain.logprobs is None
    assert "logprobs" not in plain.to_dict()
    assert all(entry.top == [] for entry in asked.logprobs)


@pytest.mark.parametrize("mode", ["plain", "partial"])
@pytest.mark.parametrize("sampling", [SAMPLING, replace(SAMPLING, temperature=0.0)], ids=["sampled", "greedy"])
def test_processed_ones_are_of_the_distribution_that_is_drawn_from(model, mode, sampling):
    """Every token that was drawn has a finite one, a suppressed or filtered token none."""
    out = ts.generate(
        model, PROMPT, sampling, SPECULATIONS[mode], max_new_tokens=60, logprobs=12, logprobs_mode="processed"
    )
    kept = [len(entry.top) for entry in out.logprobs]
    assert all(np.isfinite(entry.logprob) for entry in out.logprobs)
    if sampling.temperature:
        assert max(kept) == SAMPLING.top_k
    total = [sum(np.exp(value) for _, value in entry.top) for entry in out.logprobs]
    if sampling.temperature:
        np.testing.assert_allclose(total, 1, atol=1e-5)
    replayed = replayed_logprobs(model, Request(PROMPT, sampling, 60), out.token_ids, LogprobSpec(12, True))
    np.testing.assert_allclose([entry.logprob for entry in out.logprobs], replayed.values, atol=5e-5)


def test_a_batch_gives_each_row_its_own(model):
    prompts = [PROMPT, [7] * 40]
    both = ts.generate(model, prompts, SAMPLING, SPECULATIONS["fused"], max_new_tokens=[50, 70], logprobs=2)
    for row, out in enumerate(both):
        alone = ts.generate(
            model, prompts[row], replace(SAMPLING, sequence=row), max_new_tokens=[50, 70][row], logprobs=2
        )
        assert alone.token_ids == out.token_ids
        np.testing.assert_allclose(
            [entry.logprob for entry in out.logprobs], [entry.logprob for entry in alone.logprobs], atol=2e-5
        )


def test_a_stream_carries_them_with_its_tokens(model):
    events = list(ts.stream(model, PROMPT, SAMPLING, SPECULATIONS["fused"], max_new_tokens=50, logprobs=1))
    streamed = [v for event in events if len(event.records) for v in event.records.logprobs.values.tolist()]
    assert streamed == [entry.logprob for entry in events[-1].result.logprobs]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"logprobs": -1}, "logprobs is -1; it must be a whole number from 0 to 48"),
        ({"logprobs": 49}, "logprobs is 49; it must be a whole number from 0 to 48"),
        ({"logprobs": 1, "logprobs_mode": "both"}, "logprobs_mode is 'both'; it must be 'raw' or 'processed'"),
    ],
)
def test_wrong_values(model, asked, given):
    with pytest.raises(ts.UserError, match=given):
        ts.generate(model, PROMPT, SAMPLING, max_new_tokens=3, **asked)


def test_the_command_writes_them_into_the_statistics(tmp_path, capsys):
    stats = tmp_path / "stats.json"
    words = "--max-new-tokens 4 --mode autoregressive --temperature 1 --top-k 3 --logprobs 5 --logprobs-mode processed"
    assert main([*words.split(), "--quiet", "--stats", str(stats)]) == 0
    written = json.loads(stats.read_text())
    assert [entry["token_id"] for entry in written["logprobs"]] == written["token_ids"]
    assert [len(entry["top"]) for entry in written["logprobs"]] == [3] * 4, "the others were filtered out"
    capsys.readouterr()


def test_scored_tokens(model):
    """The reduced form of `score`: texts of one and of many chunks."""
    random = np.random.default_rng(2)
    texts = [random.integers(0, small_models.VOCAB, length).tolist() for length in (1, 2, 300)]
    scored = ts.score_tokens(model, texts, top=3)
    logits = ts.score(model, texts)
    for text, one, row in zip(texts, scored, logits, strict=True):
        expected = log_softmax(row[: len(text) - 1])
        assert one.token_ids == text
        np.testing.assert_allclose(one.logprobs, expected[np.arange(len(text) - 1), text[1:]], atol=2e-5)
        np.testing.assert_array_equal(one.greedy, row[: len(text) - 1].argmax(axis=-1) == text[1:])
        np.testing.assert_allclose(one.top_logprobs, -np.sort(-expected, axis=-1)[:, :3], atol=2e-5)
        assert one.top_ids.shape == (len(text) - 1, 3)
    with pytest.raises(ts.UserError, match="top is 99"):
        ts.score_tokens(model, texts, top=99)
