"""Positions at which nothing may be drawn, and an audit that does not share the rule that it audits."""

import json
import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import successor_model, with_eos

import tokenswift_jax as ts
from tokenswift_jax.audit import margin as margin_module
from tokenswift_jax.audit import replay as replay_module
from tokenswift_jax.audit.oracle import may_be_drawn, noise_of, penalty_windows
from tokenswift_jax.audit.replay import audit
from tokenswift_jax.cli.generate import main
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.request import Request
from tokenswift_jax.sample import draw as draw_module
from tokenswift_jax.sample import params
from tokenswift_jax.sample.draw import draw_and_score

VOCAB = 48
GREEDY = ts.SamplingConfig(temperature=0.0)
PLAIN = ts.SpeculationConfig(mode="autoregressive")
MODES = [PLAIN, ts.SpeculationConfig(mode="medusa", node_budget=3), ts.SpeculationConfig(mode="ngram", node_budget=3)]


@pytest.fixture(scope="module")
def small():
    return with_eos(successor_model(VOCAB), 5, 9)


def with_logit(model, token, value):
    """The model whose logit of `token` is the first number of the final hidden state times an infinite `value`."""
    flat = [
        (path, param.replace(param[...].at[:, token].set(0).at[0, token].set(value)) if path[0] == "lm_head" else param)
        for path, param in nnx.to_flat_state(model.params)
    ]
    return replace(model, params=nnx.from_flat_state(flat))


def all_but(*tokens):
    return tuple(token for token in range(VOCAB) if token not in tokens)


def test_settings_that_leave_nothing_are_refused_together(small):
    left = replace(GREEDY, suppress_tokens=all_but(5, 9))
    reported = (
        "suppress_tokens leaves only tokens that end the text, and none of those is drawn before min_new_tokens 3"
    )
    for call in (
        lambda: ts.generate(small, [1], left, max_new_tokens=8, min_new_tokens=3),
        lambda: ts.generate(small, [[1], [2]], [GREEDY, left], max_new_tokens=8, min_new_tokens=[0, 3]),
        lambda: ts.generate(replace(small, generation_config={"min_new_tokens": 3}), [1], left, max_new_tokens=8),
        lambda: audit(small, Request([1], left, 8, 3, (5, 9)), [0, 0, 0]),
    ):
        with pytest.raises(ts.UserError, match=reported):
            call()
    assert ts.generate(small, [1], left, PLAIN, max_new_tokens=8).finish_reason == "eos"
    one_left = replace(GREEDY, suppress_tokens=all_but(5, 9, 7))
    assert ts.generate(small, [1], one_left, PLAIN, max_new_tokens=4, min_new_tokens=4).token_ids == [7] * 4
    ignoring = ts.generate(small, [1], left, PLAIN, max_new_tokens=4, min_new_tokens=4, ignore_eos=True)
    assert set(ignoring.token_ids) <= {5, 9}


def test_on_the_command_line_it_names_the_flags(capsys):
    eos = json.loads((DEMO_MODEL / "generation_config.json").read_text())["eos_token_id"]
    ids = ",".join(str(token) for token in range(2048) if token != eos)
    assert main(["--suppress-tokens", ids, "--min-new-tokens", "3"]) == 2
    reported = capsys.readouterr().err
    assert "--suppress-tokens leaves only tokens that end the text" in reported
    assert "lower --min-new-tokens to 0" in reported


@pytest.mark.parametrize("speculation", MODES)
@pytest.mark.parametrize("sampling", [GREEDY, ts.SamplingConfig(seed=1), ts.SamplingConfig(top_p=0.9, top_k=20)])
def test_an_infinite_logit_is_an_error_at_its_position(small, speculation, sampling):
    infinite = with_logit(small, 7, math.inf)
    with pytest.raises(ts.NumericsError, match=r"logits of position \d+ are not numbers \(NaN or infinite\)") as error:
        ts.generate(infinite, [1, 2, 3], sampling, speculation, max_new_tokens=20, ignore_eos=True)
    position = error.value.position
    assert position >= 3
    suppressing = replace(sampling, suppress_tokens=(7,))  # a token that is never drawn does no harm
    out = ts.generate(infinite, [1, 2, 3], suppressing, speculation, max_new_tokens=20, ignore_eos=True)
    assert out.generated_tokens == 20
    batch = ts.generate(infinite, [[1, 2, 3]], sampling, speculation, max_new_tokens=20, ignore_eos=True)
    assert (batch[0].finish_reason, batch[0].generated_tokens) == ("error", position - 3)


@pytest.mark.parametrize("backend", ["one reduction", "two"])
def test_the_score_of_a_draw_tells_of_every_kind_of_broken_row(backend):
    """At no cost beyond the draw: a reduction of its own would read the logits once more."""
    rows = np.zeros((5, 9), np.float32)
    rows[1, 4], rows[2, 4], rows[3], rows[4, :8] = np.nan, np.inf, -np.inf, -np.inf
    function = {"one reduction": draw_module._highest, "two": draw_module._highest_in_two_reductions}[backend]
    assert np.isfinite(np.asarray(function(jnp.asarray(rows))[1])).tolist() == [True, False, False, False, True]
    assert np.isfinite(np.asarray(draw_and_score(jnp.asarray(rows), None)[1])).tolist() == [True, *[False] * 3, True]


def test_logits_that_are_infinite_for_all_that_may_be_drawn_are_an_error(small):
    settings = replace(GREEDY, suppress_tokens=all_but(7))
    never = with_logit(small, 7, -math.inf)
    with pytest.raises(ts.NumericsError, match="position"):
        ts.generate(never, [1, 2, 3], settings, PLAIN, max_new_tokens=20, ignore_eos=True)


def emitted(model, settings, count=40, **ends):
    return ts.generate(model, [1, 2, 3], settings, PLAIN, max_new_tokens=count, **ends).token_ids


def test_an_audit_finds_a_rule_that_forgets_what_is_suppressed(small, monkeypatch):
    """The rule is broken for decoding and for the replay alike."""
    settings = ts.SamplingConfig(seed=3, suppress_tokens=(7, 8))
    monkeypatch.setattr(params, "token_set", lambda ids, vocab: np.zeros(-(-vocab // 32), np.uint32))
    tokens = emitted(small, settings, ignore_eos=True)
    assert {7, 8} & set(tokens), "the broken rule drew none of them"
    report = audit(small, Request([1, 2, 3], settings, 40), tokens)
    assert (report.failed, report.max_margin) == (True, margin_module.MARGIN_LIMIT)
    assert report.mismatches == sum(token in (7, 8) for token in tokens)
    assert not audit(small, Request([1, 2, 3], replace(settings, suppress_tokens=()), 40), tokens).failed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.5),
        ("top_k", 2),
        ("top_p", 0.4),
        ("min_p", 0.5),
        ("eta_cutoff", 0.3),
        ("repetition_penalty", 3.0),
    ],
)
def test_an_audit_finds_a_rule_without_one_of_its_parts(small, monkeypatch, field, value):
    """Both the decoding and the replay see settings without the part; the definition sees the request."""
    settings = ts.SamplingConfig(seed=3, **{field: value})
    plain = ts.SamplingConfig(seed=3)
    tokens = emitted(small, plain, ignore_eos=True)
    whole = params.sequence_params

    def without(requests, vocab):
        return whole([replace(request, sampling=plain) for request in requests], vocab)

    monkeypatch.setattr(replay_module, "sequence_params", without)
    report = audit(small, Request([1, 2, 3], settings, 40), tokens)
    assert report.failed
    assert 0 < report.mismatches < 40
    monkeypatch.undo()
    kept = emitted(small, settings, ignore_eos=True)
    assert not audit(small, Request([1, 2, 3], settings, 40), kept).failed


def test_an_audit_finds_a_draw_that_is_not_the_highest(small, monkeypatch):
    settings = ts.SamplingConfig(seed=3)

    def lowest(scores, noise):
        return jnp.argmin(scores, axis=-1).astype(jnp.int32)

    monkeypatch.setattr(replay_module, "draw", lowest)
    replay_module._programs.cache_clear()
    request = Request([1, 2, 3], settings, 40)
    logits = ts.score(small, [[1, 2, 3]])[0][-1]
    first = int(logits.argmin())
    try:
        assert audit(small, request, [first]).failed
    finally:
        replay_module._programs.cache_clear()


def by_hand(logits, noise, sampling):
    """The draw of a vocabulary small enough to sort, filter after filter, as transformers' warpers do it."""
    scores = logits.astype(np.float64) / sampling.temperature
    keep = sampling.min_tokens_to_keep

    def cut(wanted):
        best = np.argsort(-scores, kind="stable")[:keep]
        wanted[best] = True
        return np.where(wanted, scores, -np.inf)

    if sampling.top_k:
        scores = cut(scores >= np.sort(scores)[-max(sampling.top_k, keep)])
    if sampling.top_p:
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        scores = cut(np.asarray([shares[scores > one].sum() < sampling.top_p for one in scores]) & (scores > -np.inf))
    if sampling.min_p:
        scores = cut(scores >= scores.max() + np.log(sampling.min_p))
    if sampling.eta_cutoff:
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        entropy = -sum(share * np.log(share) for share in shares if share > 0)
        scores = cut(shares >= min(sampling.eta_cutoff, np.sqrt(sampling.eta_cutoff) * np.exp(-entropy)))
    return int(np.argmax(scores + noise))


@pytest.mark.parametrize("seed", range(40))
def test_the_definition_allows_the_draw_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    choice = {"top_k": [None, 3, 8], "top_p": [None, 0.3, 0.9], "min_p": [None, 0.1], "eta_cutoff": [None, 0.2]}
    settings = {name: values[rng.integers(len(values))] for name, values in choice.items()}
    keep = int(rng.integers(1, 4))
    sampling = ts.SamplingConfig(temperature=0.7, seed=seed, min_tokens_to_keep=keep, **settings)
    request = Request([1], sampling, 9)
    logits = rng.normal(0, 2, 12).astype(np.float32)
    noise = noise_of(request, [1], 12)
    assert noise is not None
    allowed = [may_be_drawn(token, logits, noise[0], 0, np.zeros(0, np.int64), request) for token in range(12)]
    assert np.flatnonzero(allowed).tolist() == [by_hand(logits, noise[0], sampling)]


@pytest.mark.parametrize("window", [None, 1, 3, 99])
def test_the_window_before_a_position(window):
    text = np.random.default_rng(0).integers(0, 6, 30).tolist()
    request = Request([1], ts.SamplingConfig(penalty_window=window), 9)
    positions = [4, 5, 6, 20, 29]
    for position, found in zip(positions, penalty_windows(text, positions, request), strict=True):
        assert set(found.tolist()) == set(text[:position][-(window or position) :])


def test_the_noise_is_the_one_of_the_draws(small):
    """By the contract's formula, with a sequence of its own."""
    sampling = ts.SamplingConfig(seed=9, sequence=4)
    tokens = emitted(small, sampling, ignore_eos=True)
    request = Request([1, 2, 3], sampling, 40)
    noise = noise_of(request, range(3, 43), VOCAB)
    logits = ts.score(small, [[1, 2, 3, *tokens]])[0][2:-1]
    assert noise is not None
    assert (logits + noise).argmax(-1).tolist() == tokens
