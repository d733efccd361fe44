"""The audit: clean on what decoding gives, exact about what was tampered with, and its margins recomputed by hand."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import successor_model, with_eos

import tokenswift_jax as ts
from tokenswift_jax.audit import replay as audit_module
from tokenswift_jax.audit.replay import audit
from tokenswift_jax.cli.generate import main
from tokenswift_jax.model import DEMO_MODEL
from tokenswift_jax.request import Request

GREEDY = ts.SamplingConfig(temperature=0.0)
DRAFTED = ts.SpeculationConfig(mode="medusa", node_budget=3)
PLAIN = ts.SpeculationConfig(mode="autoregressive")  # where drafts are beside the point: fewer programs to compile
VOCAB = 48
COUNT = 300  # with any prompt here more than one chunk of 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shutil.copytree(DEMO_MODEL, tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def demo(folder):
    return ts.load(folder)


@pytest.fixture(scope="module")
def small():
    return successor_model(VOCAB)


def emitted(model, prompt, sampling, speculation=DRAFTED, **options):
    return ts.generate(model, prompt, sampling, speculation, max_new_tokens=COUNT, **options).token_ids


def tampered(tokens, at, token):
    return [*tokens[:at], token, *tokens[at + 1 :]]


def found(model, prompt, tokens, sampling, min_new_tokens=0, ignore_eos=False, sequence=None):
    sequence = sampling.sequence if sequence is None else sequence
    eos = () if ignore_eos else tuple(model.eos_token_ids)
    request = Request(prompt, replace(sampling, sequence=sequence), len(tokens), min_new_tokens, eos)
    return audit(model, request, tokens)


def assert_clean(report, positions):
    assert (report.positions, report.mismatches, report.max_margin) == (positions, 0, 0.0)
    assert (report.bound, report.failed) == (0.0, False)


@pytest.mark.long
def test_the_demo_greedy_and_with_every_processor(demo):
    prompt = demo.tokenizer("The old house stood at the end of the lane.").input_ids
    tokens = emitted(demo, prompt, GREEDY, ignore_eos=True)
    assert_clean(found(demo, prompt, tokens, GREEDY, ignore_eos=True), COUNT)
    common = np.bincount(tokens, minlength=demo.config.vocab_size).argsort()[-3:]
    sampling = ts.SamplingConfig(
        temperature=0.9,
        top_k=50,
        top_p=0.95,
        min_p=0.02,
        eta_cutoff=1e-3,
        repetition_penalty=1.2,
        penalty_window=40,  # smaller than a chunk
        suppress_tokens=tuple(common.tolist()),
        seed=3,
        sequence=2,
    )
    out = ts.generate(demo, prompt, sampling, DRAFTED, max_new_tokens=COUNT, min_new_tokens=COUNT, audit=True)
    assert out.audit == {"positions": COUNT, "mismatches": 0, "max_margin": 0.0}
    assert not out.audit_failed
    assert out.accepted_tokens > 20, "nothing was drafted, so little was tested"


def test_a_tampered_greedy_text_is_found_where_it_was_tampered_with(small):
    """Every position that is not the draw counts, with half the gap of its logits; nothing else does."""
    prompt = [5, 6, 7]
    tokens = emitted(small, prompt, GREEDY)
    for at in (0, 252, 253, COUNT - 1):  # around the edge of the first chunk, which draws position 256
        wrong = tampered(tokens, at, (tokens[at] + 1) % VOCAB)
        logits = ts.score(small, [prompt + wrong])[0][len(prompt) - 1 : -1]
        draws = logits.argmax(-1)
        expected = np.flatnonzero(draws != wrong)
        assert expected[0] == at
        gaps = logits.max(-1) - logits[np.arange(COUNT), wrong]
        report = found(small, prompt, wrong, GREEDY)
        assert report.failed
        assert (report.positions, report.mismatches, report.bound) == (COUNT, len(expected), 0.0)
        # Logits of the size 8 have a resolution of 1e-6 in float32.
        assert report.max_margin == pytest.approx(gaps[expected].max() / 2, abs=3e-6)
        # Exactly its position: the text up to it has one mismatch, the text before it none.
        assert found(small, prompt, wrong[: at + 1], GREEDY).mismatches == 1
        if at:
            assert_clean(found(small, prompt, wrong[:at], GREEDY), at)


@pytest.mark.parametrize("length", [255, 256, 257])
def test_prompts_that_end_around_the_edge_of_a_chunk(small, length):
    prompt = np.random.default_rng(length).integers(0, VOCAB, length).tolist()
    tokens = emitted(small, prompt, GREEDY)[:40]
    assert_clean(found(small, prompt, tokens, GREEDY), 40)
    for at in (0, 39):
        first_wrong = tampered(tokens, at, (tokens[at] + 1) % VOCAB)[: at + 1]
        report = found(small, prompt, first_wrong, GREEDY)
        assert (report.positions, report.mismatches) == (at + 1, 1)


def scores_of(logits, penalised, sampling):
    """[vocab] float64: penalty, temperature, min-p, as the contract has them."""
    divided = np.where(logits < 0, logits * sampling.repetition_penalty, logits / sampling.repetition_penalty)
    scores = np.where(penalised, divided, logits) / sampling.temperature
    return scores, np.where(scores >= scores.max() + np.log(sampling.min_p), scores, -np.inf)


def smallest_change(logits, penalised, noise, token, sampling):
    """By trying: every logit moves by delta, the token's up; the others all down, or only those drawn before it."""
    plain = scores_of(logits, penalised, sampling)[0] + noise
    own = np.arange(VOCAB) == token
    for delta in np.arange(0, 20, 1e-3):
        for up in (own, own | (plain < plain[token])):
            changed = logits + np.where(up, delta, -delta)
            if (scores_of(changed, penalised, sampling)[1] + noise).argmax() == token:
                return delta
    raise AssertionError("20 logits are not enough")


def test_margins_of_sampled_draws_by_trying(small):
    sampling = ts.SamplingConfig(
        temperature=0.8, min_p=0.05, repetition_penalty=1.3, penalty_window=9, seed=11, sequence=4
    )
    prompt = list(range(30))
    tokens = emitted(small, prompt, sampling)
    assert_clean(found(small, prompt, tokens, sampling), COUNT)
    for name, changed in {
        "temperature": replace(sampling, temperature=1.2),
        "min_p": replace(sampling, min_p=0.4),
        "penalty": replace(sampling, repetition_penalty=2.0),
        "window": replace(sampling, penalty_window=5),
        "seed": replace(sampling, seed=12),
        "sequence": replace(sampling, sequence=5),
        "suppressed": replace(sampling, suppress_tokens=(tokens[7],)),
    }.items():
        report = found(small, prompt, tokens, changed)
        assert (report.failed, report.mismatches > 0) == (True, True), f"another {name} is another text"
        assert 0 < report.max_margin < np.inf
    text = prompt + tokens
    logits = ts.score(small, [text])[0].astype(np.float64)
    rng = np.random.default_rng(0)
    key = jax.random.fold_in(jax.random.key(11), 4)
    margins = []
    for at in (0, 3, 100, 226, 240, COUNT - 1):
        position = len(prompt) + at
        noise = np.asarray(jax.random.gumbel(jax.random.fold_in(key, position), (VOCAB,), jnp.float32, mode="low"))
        penalised = np.isin(np.arange(VOCAB), text[position - 9 : position])
        drawn = (scores_of(logits[position - 1], penalised, sampling)[1] + noise).argmax()
        assert drawn == tokens[at]
        token = int(rng.choice(np.delete(np.arange(VOCAB), drawn)))
        report = found(small, prompt, [*tokens[:at], token], sampling)
        assert (report.mismatches, report.failed) == (1, True)
        expected = smallest_change(logits[position - 1], penalised, noise, token, sampling)
        assert report.max_margin == pytest.approx(expected, abs=1.1e-3)  # one step of the search above
        margins.append(report.max_margin)
    assert min(margins) > 0.1


def test_rows_of_a_batch_are_sequences_of_their_own(small):
    sampling = ts.SamplingConfig(seed=1, sequence=5)
    prompts = [[1, 2, 3], list(range(20))]
    outs = ts.generate(small, prompts, sampling, PLAIN, max_new_tokens=60, audit=True)
    assert [out.audit["mismatches"] for out in outs] == [0, 0]
    assert_clean(found(small, prompts[1], outs[1].token_ids, sampling, sequence=6), 60)
    assert found(small, prompts[1], outs[1].token_ids, sampling, sequence=5).mismatches > 10


def test_an_eos_that_is_forbidden_for_a_while_or_ignored(small):
    prompt, sampling = [3, 1], ts.SamplingConfig(seed=2)
    free = emitted(small, prompt, sampling, PLAIN)
    at = next(at for at in range(4, 30) if free[at] not in free[:at])
    model = with_eos(small, free[at])
    early = emitted(model, prompt, sampling, PLAIN)
    assert early == free[: at + 1]
    assert_clean(found(model, prompt, early, sampling), at + 1)
    late = emitted(model, prompt, sampling, PLAIN, min_new_tokens=30)
    assert len(late) >= 30
    assert_clean(found(model, prompt, late, sampling, min_new_tokens=30), len(late))
    assert found(model, prompt, late, sampling).mismatches > 0
    assert emitted(model, prompt, sampling, PLAIN, ignore_eos=True, min_new_tokens=30) == free
    assert_clean(found(model, prompt, free, sampling, ignore_eos=True, min_new_tokens=30), COUNT)
    assert found(model, prompt, free, sampling, min_new_tokens=30).mismatches > 0


def test_nothing_to_audit(small):
    assert_clean(found(small, [1], [], GREEDY), 0)


@pytest.mark.long
def test_bfloat16_allows_near_ties_and_nothing_else(folder):
    model = ts.load(folder, dtype="bfloat16")
    prompt = model.tokenizer("The old house stood at the end of the lane.").input_ids
    tokens = ts.generate(model, prompt, GREEDY, PLAIN, max_new_tokens=200, ignore_eos=True).token_ids
    report = found(model, prompt, tokens, GREEDY, ignore_eos=True)
    assert not report.failed
    assert report.max_margin <= report.bound
    assert (report.bound > 0) == (report.mismatches > 0), "the bound is measured when there is something to excuse"

    # The draws of the replay itself are clean, no matter which tokens the run above drew, up to the first difference.
    logits = ts.score(model, [prompt + tokens])[0][len(prompt) - 1 : -1]
    draws, best = logits.argmax(-1), np.sort(logits, axis=-1)
    same = np.append(np.flatnonzero(draws != tokens), len(tokens))[0]
    assert_clean(found(model, prompt, tokens[:same], GREEDY, ignore_eos=True), same)

    gaps = best[:same, -1] - best[:same, -2]
    at = int(gaps.argmin())
    second = int(logits[at].argsort()[-2])
    near = found(model, prompt, [*tokens[:at], second], GREEDY, ignore_eos=True)
    assert (near.mismatches, near.failed) == (1, bool(gaps[at] / 2 > near.bound))
    assert near.max_margin == pytest.approx(gaps[at] / 2, abs=1e-5)
    assert 0 < near.bound < 1, "logits of one text in bfloat16 differ by some hundredths"
    assert not near.failed, f"the closest of {same} draws is {gaps[at]} apart: choose a longer text"

    at = int(gaps.argmax())
    report = found(model, prompt, [*tokens[:at], int(logits[at].argmin())], GREEDY, ignore_eos=True)
    assert (report.mismatches, report.failed) == (1, True)
    assert report.max_margin > report.bound > 0


@pytest.mark.parametrize("tamper", [False, True])
def test_the_command_replays_what_it_wrote(folder, tmp_path, monkeypatch, capsys, tamper):
    """Status 1 when the audit finds a token that is not the draw, here one that was slipped in before the replay."""

    def slipped_in(model, request, token_ids):
        changed = (token_ids[4] + 1) % model.config.vocab_size if tamper else token_ids[4]
        return audit(model, request, tampered(token_ids, 4, changed))

    monkeypatch.setattr(audit_module, "audit", slipped_in)
    stats = tmp_path / "stats.json"
    words = "--prompt The --temperature 0 --repetition-penalty 1 --mode medusa --node-budget 3 --ignore-eos"
    sizes = ["--max-new-tokens", "20", "--capacity", "512"]
    status = main(["--model", str(folder), *words.split(), *sizes, "--audit", "--stats", str(stats)])
    block = json.loads(stats.read_text())["audit"]
    assert block["positions"] == 20
    assert list(block) == ["positions", "mismatches", "max_margin"]
    last = capsys.readouterr().err.splitlines()[-1]
    if tamper:
        assert status == 1
        assert block["mismatches"] >= 1
        assert block["max_margin"] > 0
        assert "audit FAILED" in last
    else:
        assert (status, block) == (0, {"positions": 20, "mismatches": 0, "max_margin": 0.0})
        assert "audit passed" in last
