"""The tuner against a simulated clock: what it picks, what its trials lose, how it follows a text that changes."""

import itertools

import numpy as np
import pytest
import small_models

from tokenswift_jax.decoding.autotune import Tuner
from tokenswift_jax.decoding.plans import NamedPlan, autoregressive_plan
from tokenswift_jax.decoding.processors import Processors
from tokenswift_jax.decoding.state import Plan
from tokenswift_jax.decoding.tree import TreeShape

TOKENS, CHUNK = 2048, 32
CONFIG = small_models.config(48)
PLAIN = autoregressive_plan(CONFIG, Processors())


def plan(budget):
    """A plan that can emit 5 tokens an iteration."""
    tree = TreeShape((1, 2, 2, 2), node_budget=budget)
    return NamedPlan("tokenswift", "partial", budget, Plan(CONFIG, Processors(), "partial", tree, None))


def simulate(prices, gains, tokens=TOKENS, noise=0.0, seed=0):
    """A run as `DecodingRun` drives it, one chunk ahead, on a clock where plain decoding takes 1 second a token.

    Args:
      prices: seconds of one iteration of each plan.
      gains: (plan, position, random generator) -> tokens of one iteration.
      noise: chunks take up to this share longer, at random.

    Returns:
      the speed relative to plain decoding under the same noise, and which plan ran: (plan, first position, tokens).
    """
    rng = np.random.default_rng(seed)
    tuner = Tuner(PLAIN, list(prices), tokens)
    clock, position, log = 0.0, 0, []

    def dispatch():
        nonlocal position
        named, most = tuner.next_plan()
        begun, seconds = position, 0.0
        for _ in range(CHUNK if most is None else most):
            if position - begun >= CHUNK or position >= tokens:
                break
            gain = 1 if named is PLAIN else gains(named, position, rng)
            position += min(gain, tokens - position)
            seconds += 1 if named is PLAIN else prices[named]
        seconds *= 1 + noise * rng.random()
        return named, begun, position - begun, seconds

    ready, pending = tuner.next_plan()[0], dispatch()
    while pending[2]:
        ahead = dispatch() if not tuner.trying and tuner.next_plan()[0] is ready else None
        named, begun, count, seconds = pending
        clock += seconds
        tuner.observe(named, count, seconds)
        log.append((named, begun, count))
        if ahead is None:
            ready, ahead = tuner.next_plan()[0], dispatch()
        pending = ahead
    return tokens * (1 + noise / 2) / clock, log


def share(log, named):
    return sum(count for one, _, count in log if one is named) / sum(count for *_, count in log)


def nothing(*_):
    return 1


@pytest.mark.parametrize("price", [1.02, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("count", [1, 3])
def test_what_never_accepts_costs_at_most_three_percent(price, count):
    prices = {plan(i + 1): 1 + (price - 1) * (1 + i / 2) for i in range(count)}
    speed, log = simulate(prices, nothing)
    assert speed >= 0.97
    assert {named for named, *_ in log} >= {PLAIN, next(iter(prices))}  # it was tried


@pytest.mark.parametrize("tokens", [40, 64, 200, 1000, 20000])
def test_other_lengths_lose_little_too(tokens):
    prices = {plan(3): 1.25, plan(7): 1.7, plan(15): 2.2}  # a CPU's
    speed, _ = simulate(prices, nothing, tokens)
    assert speed >= (0.97 if tokens > 200 else 0.95)


def test_no_plans_no_trials():
    tuner = Tuner(PLAIN, [], TOKENS)
    tuner.observe(PLAIN, 32, 1.0)
    assert not tuner.trying
    assert tuner.next_plan() == (PLAIN, None)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_fastest_plan_is_taken_and_kept(best):
    prices = {plan(3): 1.25, plan(7): 1.75, plan(15): 2.5}
    rates = dict.fromkeys(prices, 2)
    rates[list(prices)[best]] = 5
    speed, log = simulate(prices, lambda named, *_: rates[named])
    fastest = min(prices, key=lambda named: prices[named] / rates[named])
    assert fastest is list(prices)[best]
    assert share(log, fastest) > 0.85
    assert speed > 0.8 * rates[fastest] / prices[fastest]  # plain decoding is measured first, for 64 tokens


def test_noisy_gains_are_told_from_noisy_losses():
    """30% faster and 15% slower on average, luck by the iteration and a clock that wavers."""

    def gains(named, position, rng):
        return 1 + min(4, int(rng.geometric(1 / means[named])) - 1)

    good, bad = plan(3), plan(7)
    prices, means = {good: 1.25, bad: 2.2}, {good: 1.8, bad: 2.0}
    speeds, shares = [], []
    for seed in range(20):
        speed, log = simulate(prices, gains, noise=0.1, seed=seed)
        speeds.append(speed)
        shares.append(share(log, good))
    assert min(speeds) >= 0.97
    assert np.median(shares) > 0.8
    assert np.median(speeds) > 1.15


def test_trials_that_find_nothing_grow_rarer():
    named = plan(3)
    _, log = simulate({named: 1.25}, nothing, tokens=16384)
    starts = [begun for one, begun, _ in log if one is named]
    rounds = [b for a, b in itertools.pairwise([-100, *starts]) if b - a > 20]
    waits = np.diff(rounds)
    assert len(waits) >= 4
    assert (np.diff(waits) > 0).all()
    assert waits[-1] > 4 * waits[0]


def test_a_plan_that_stops_paying_is_dropped_at_once():
    named = plan(7)
    turn = 1000
    _, log = simulate({named: 2.0}, lambda _, position, __: 4 if position < turn else 1)
    assert share([entry for entry in log if 200 < entry[1] < turn], named) == 1
    after = [entry for entry in log if entry[1] >= turn]
    dropped = next(i for i, (one, *_) in enumerate(after) if one is PLAIN)
    # The chunk that shows it, the one already under way, and what the turn cut in two.
    assert dropped <= 2
    assert sum(count for *_, count in after[:dropped]) <= 2 * CHUNK


def test_it_returns_when_the_text_changes():
    named = plan(3)
    turn = 1500
    speed, log = simulate({named: 1.25}, lambda _, position, __: 1 if position < turn else 4, tokens=8192)
    assert share([entry for entry in log if entry[1] < turn], named) < 0.05
    assert share([entry for entry in log if entry[1] > 4 * turn], named) > 0.9
    assert speed > 1.5


@pytest.mark.parametrize("price", [1.25, 1.7, 2.2, 5.0])
@pytest.mark.parametrize("begin", [0, 1])
def test_a_text_that_changes_against_it_loses_little(price, begin):
    """Every 100 tokens drafts turn from perfect to useless: whatever is learned is soon wrong."""
    speed, _ = simulate({plan(7): price}, lambda _, position, __: 5 if (position // 100) % 2 == begin else 1)
    assert speed >= 0.97


def test_one_slow_chunk_of_plain_decoding_does_not_make_a_plan_look_good():
    named = plan(3)
    tuner = Tuner(PLAIN, [named], TOKENS)
    for seconds in (32.0, 60.0):  # the second chunk was disturbed
        assert tuner.next_plan() == (PLAIN, 32)
        tuner.observe(PLAIN, 32, seconds)
    while tuner.trying:
        one, most = tuner.next_plan()
        assert one is named
        tuner.observe(named, most, 1.25 * most)
    assert tuner.current is PLAIN


def test_the_plan_in_use_is_compared_with_fresh_measurements():
    """A machine that slows down for plain decoding and plan alike is no reason to leave the plan for good."""
    named = plan(3)
    tuner = Tuner(PLAIN, [named], 10**6)
    slow, used = 1.0, []
    for chunk in range(400):
        if chunk == 100:
            slow = 3.0
        one, most = tuner.next_plan()
        tokens = min(CHUNK if most is None else most * (1 if one is PLAIN else 2), CHUNK)
        iterations = tokens if one is PLAIN else tokens / 2
        tuner.observe(one, tokens, slow * iterations * (1 if one is PLAIN else 1.25))
        used.append(one is named)
    assert np.mean(used[50:100]) > 0.9
    assert np.mean(used[200:]) > 0.8
