"""Same seed, same tokens as plain decoding: every mode, greedy and with every processor, over 2,048 tokens.

The models are tiny and their drafts good, so each depth's acceptance is exercised thousands of times; a test that
accepted nothing would pass with any verification, so acceptance is asserted as well.
"""

import functools

import numpy as np
import pytest
import small_models
from decoded import PLAIN, assert_same, decode, decode_batch
from speculations import SPECULATIONS

from tokenswift_jax.engine import session
from tokenswift_jax.engine.planner import Planner
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import plans

TOKENS = 2048
PROMPT = np.random.default_rng(1).integers(0, small_models.VOCAB, 20).tolist()
EOS = 7
GREEDY = SamplingConfig(temperature=0.0, repetition_penalty=1.1, penalty_window=24)
# The program fixes the processors that run, and not their values. These settings run every processor, so that one
# executable a mode serves; a processor that a test does not ask for has a value that keeps (nearly) all.
_ALL = {
    "temperature": 0.9,
    "top_k": small_models.VOCAB,
    "top_p": 1 - 1e-6,
    "min_p": 1e-6,
    "eta_cutoff": 1e-6,
    "repetition_penalty": 1 + 1e-6,
    "penalty_window": 1,
    "min_tokens_to_keep": 2,
    "suppress_tokens": (3,),
    "seed": 5,
}
SAMPLED = {
    "min-p, penalty": {"min_p": 0.1, "repetition_penalty": 1.2, "penalty_window": 24, "temperature": 1.0},
    "top-k, top-p": {"top_k": 5, "top_p": 0.85},
    "eta": {"eta_cutoff": 0.05, "seed": 6},
    "suppress, min-new": {"suppress_tokens": (3, 11, 30), "seed": 7},
    "everything": {
        "top_k": 9,
        "top_p": 0.95,
        "min_p": 0.03,
        "eta_cutoff": 0.02,
        "repetition_penalty": 1.1,
        "penalty_window": 3,
        "suppress_tokens": (0, 40),
    },
}


@functools.cache
def model(layers):
    return small_models.with_eos(small_models.successor_model(layers=layers), EOS)


def write(case, speculation):
    """The text of a case."""
    if case == "greedy":
        return decode(model(2), PROMPT, GREEDY, speculation, max_new_tokens=TOKENS, ignore_eos=True)
    # EOS is forbidden for the first TOKENS and sure to come soon after them.
    limits = {"max_new_tokens": 2 * TOKENS, "min_new_tokens": TOKENS}
    return decode(model(1), PROMPT, SamplingConfig(**_ALL | SAMPLED[case]), speculation, **limits)


@functools.cache
def text(case, mode):
    """The text of a case in a mode; None is plain decoding."""
    return write(case, PLAIN if mode is None else SPECULATIONS[mode])


CASES = ("greedy", *SAMPLED)


@pytest.mark.parametrize("case", CASES)
def test_plain_decoding_has_something_to_reproduce(case):
    plain = text(case, None)
    assert len(plain.tokens) >= TOKENS
    assert plain.finish == ("length" if case == "greedy" else "eos")
    assert len(set(plain.tokens)) > small_models.VOCAB // 2
    others = [text(other, None).tokens for other in CASES if other != case]
    assert plain.tokens not in others


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["partial", "fused", "medusa", "selfspec", "ngram"])
def test_tokens_are_those_of_plain_decoding(mode, case):
    speculative = text(case, mode)
    assert_same(speculative.tokens, text(case, None).tokens)
    assert speculative.finish == text(case, None).finish
    depth = {"partial": 4, "selfspec": 4}.get(mode, 3)
    assert len(speculative.accepted_per_depth) == depth
    assert min(speculative.accepted_per_depth) >= 3  # none would prove nothing


def on_an_accelerator(monkeypatch):
    """From now on plans are an accelerator's: the verification computes the draft heads' logits too, in one pass over
    the LM head. Returns the list of the plans that are made."""
    made, found = plans.speculative_plans, []

    def speculative_plans(config, speculation, features, platform, budgets=None):
        found.extend(made(config, speculation, features, "gpu", budgets))
        return found

    monkeypatch.setattr(plans, "speculative_plans", speculative_plans)
    return found


def test_one_pass_over_the_lm_head_changes_neither_tokens_nor_drafts(monkeypatch):
    plain, apart, count = text("greedy", None).tokens, text("greedy", "fused"), 300
    found = on_an_accelerator(monkeypatch)
    prompts, limits = [PROMPT, PROMPT + plain[:777]], {"max_new_tokens": count, "ignore_eos": True}
    first, second = decode_batch(model(2), prompts, GREEDY, SPECULATIONS["fused"], **limits)
    assert [named.plan.heads_verified(2) for named in found] == [3]
    assert_same(first.tokens, plain[:count])
    assert_same(second.tokens, plain[777 : 777 + count])
    whole = count - 4  # the last iteration is cut
    np.testing.assert_array_equal(first.sources[:whole], apart.sources[:whole])
    np.testing.assert_array_equal(first.offsets[:whole], apart.offsets[:whole])
    assert min(first.accepted_per_depth + second.accepted_per_depth) >= 3


@pytest.mark.long
@pytest.mark.parametrize("case", SAMPLED)
def test_one_pass_over_the_lm_head_draws_the_same_tokens(monkeypatch, case):
    plain = text(case, None).tokens
    on_an_accelerator(monkeypatch)
    assert_same(write(case, SPECULATIONS["fused"]).tokens, plain)


def test_tokens_are_those_of_plain_decoding_with_drafts_over_blocks():
    """`partial` over blocks is among the plans of "auto blocks" below."""
    speculative = text("greedy", "selfspec blocks")
    assert_same(speculative.tokens, text("greedy", None).tokens)
    assert len(speculative.accepted_per_depth) == 4
    assert min(speculative.accepted_per_depth) >= 3


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_plain_decoding_with_any_plan_of_auto(case):
    assert_same(text(case, "auto").tokens, text(case, None).tokens)


class EachInTurn(Planner):
    """Takes another plan with every chunk, as no knowledge would; waits for no program."""

    waiting = busy = False

    def __init__(self, plain, plans, *arguments, **named):
        super().__init__(plain, plans, *arguments, **named)
        self.order, self.turn = [plain, *plans], 0

    def attend(self, engine, length):
        pass

    def next_plan(self):
        return self.order[self.turn], 16 if self.turn else None

    def observe(self, named, tokens, iterations, seconds, catch_up=0.0):
        self.turn = (self.order.index(named) + 1) % len(self.order)


@pytest.mark.parametrize(
    ("mode", "case"),
    [
        ("auto", "greedy"),
        ("auto", "everything"),
        ("tokenswift auto", "greedy"),
        ("tokenswift auto", "everything"),
        pytest.param("auto blocks", "everything", marks=pytest.mark.long),
    ],
)
def test_plans_may_change_at_every_chunk(monkeypatch, mode, case):
    plain = text(case, None)
    monkeypatch.setattr(session, "Planner", EachInTurn)
    mixed = write(case, SPECULATIONS[mode])
    assert len(mixed.trace) > 20
    assert {entry["schedule"] for entry in mixed.trace} == {None, "fused", "partial"}
    assert_same(mixed.tokens, plain.tokens)
    assert len(mixed.accepted_per_depth) == 4
    assert min(mixed.accepted_per_depth) > 0
