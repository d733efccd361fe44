"""The tuner against a simulated clock: what it picks, what its trials lose, how it follows a text that changes."""

import itertools

import numpy as np
import pytest
import small_models

from tokenswift_jax.engine.adaptive import STAY, Tuner
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter, HeadsDrafter
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.plans import NamedPlan, autoregressive_plan
from tokenswift_jax.speculate.tree import TreeSpec

TOKENS, CHUNK = 2048, 32
CONFIG = small_models.config(48)
PLAIN = autoregressive_plan(CONFIG, SamplingFeatures.SAMPLED)


def plan(budget, draft=None):
    """A plan that can emit 5 tokens an iteration."""
    tree = TreeSpec((1, 2, 2, 2), node_budget=budget)
    schedule = "fused" if draft is None else "partial"
    drafter = HeadsDrafter() if draft is None else CachedHeadsDrafter(draft)
    return NamedPlan("tokenswift", schedule, budget, Plan(CONFIG, SamplingFeatures.SAMPLED, drafter, tree))


def plan_with_a_cache(budget):
    """A plan whose draft cache must be rebuilt whenever the tuner returns to it."""
    return plan(budget, DraftCacheShape(64, 4, 1, None))


def ngram_plan(budget):
    tree = TreeSpec((), ngram_k=20, node_budget=budget)
    return NamedPlan("ngram", None, budget, Plan(CONFIG, SamplingFeatures.SAMPLED, NgramDrafter(32), tree))


def simulate(prices, gains, tokens=TOKENS, noise=0.0, seed=0, catch_ups=None, foreseen=None):
    """A run as `Session` drives it, one chunk ahead, on a clock where plain decoding takes 1 second a token.

    Args:
      prices: seconds of one iteration of each plan.
      gains: (plan, position, random generator) -> tokens of one iteration.
      noise: chunks, and catching up, take up to this share less or more, at random.
      catch_ups: seconds that taking up each plan costs; nothing where it is not named.
      foreseen: (plan, position) -> tokens an iteration that the text so far foretells; None: no plan is foreseen.

    Returns:
      the speed relative to plain decoding without noise, and which plan ran: (plan, first position, tokens).
    """
    rng = np.random.default_rng(seed)
    clock, position, log, ready = 0.0, 0, [], None
    read = 0  # position up to which the tuner knows the text
    tuner = Tuner(PLAIN, list(prices), tokens, lambda named: None if foreseen is None else foreseen(named, read))

    def wavering(seconds):
        return seconds * (1 + noise * (2 * rng.random() - 1))

    def prepare():
        nonlocal ready
        named = tuner.next_plan()[0]
        taken_up, ready = named is not ready, named
        return wavering((catch_ups or {}).get(named, 0.0)) if taken_up else 0.0

    def dispatch(catch_up=0.0):
        nonlocal position
        named, most = tuner.next_plan()
        begun, seconds = position, 0.0
        for _ in range(CHUNK if most is None else most):
            if position - begun >= CHUNK or position >= tokens:
                break
            gain = 1 if named is PLAIN else gains(named, position, rng)
            position += min(gain, tokens - position)
            seconds += 1 if named is PLAIN else prices[named]
        return named, begun, position - begun, wavering(seconds), catch_up

    pending = dispatch(prepare())
    while pending[2]:
        ahead = dispatch() if not tuner.trying and tuner.next_plan()[0] is ready else None
        named, begun, count, seconds, catch_up = pending
        read = begun + count
        clock += seconds + catch_up
        tuner.observe(named, count, seconds, catch_up)
        log.append((named, begun, count))
        pending = dispatch(prepare()) if ahead is None else ahead
    return tokens / clock, log


def share(log, named):
    return sum(count for one, _, count in log if one is named) / sum(count for *_, count in log)


def nothing(*_):
    return 1


@pytest.mark.parametrize("total", [256, 512, 2048])
@pytest.mark.parametrize("price", [1.2, 1.7])
@pytest.mark.parametrize("begins", [0, 100])
def test_a_foreseen_gain_is_taken_at_once(total, price, begins):
    """Text that n-grams foresee from `begins` on; the foresight needs some 20 tokens to notice."""
    chosen, costly = ngram_plan(3), ngram_plan(7)

    def gains(named, position, rng):
        return 1 if position < begins else 4

    def foreseen(named, read):
        return 1.0 if read < begins + 20 else 3.5

    speed, log = simulate({chosen: price, costly: 2.5}, gains, total, foreseen=foreseen)
    best = total / (min(begins, total) + max(total - begins, 0) / 4 * price)
    first = next(begun for named, begun, _ in log if named is chosen)
    assert first <= begins + 20 + 2 * CHUNK
    assert speed >= 0.6 * best
    assert share(log, costly) < 0.1


@pytest.mark.parametrize("price", [1.02, 1.5, 3.0])
def test_text_that_foretells_nothing_is_decoded_plainly(price):
    """No trial: not even the few percent that trials in the dark may cost."""
    speed, log = simulate({ngram_plan(3): price}, nothing, foreseen=lambda named, read: 1.02)
    assert share(log, PLAIN) == 1
    assert speed == 1


def test_a_foreseen_plan_whose_first_iteration_was_disturbed_is_tried_again():
    chosen = ngram_plan(3)
    disturbed = iter([40.0])  # seconds of the first iteration; the others take 1.5
    tuner = Tuner(PLAIN, [chosen], 20000, lambda named: 3.5)
    position = 0
    while position < 8000:
        named, most = tuner.next_plan()
        count = most or CHUNK
        seconds = 1.0 * count if named is PLAIN else next(disturbed, 1.5 * count)
        emitted = count if named is PLAIN else 4 * count
        position += emitted
        tuner.observe(named, emitted, seconds)
    assert tuner.current is chosen


def test_the_reason_says_what_was_tried_and_foreseen():
    def reported(plans, gain, foreseen):
        tuner = Tuner(PLAIN, plans, TOKENS, foreseen)
        for _ in range(20):
            named, most = tuner.next_plan()
            tuner.observe(named, (1 if named is PLAIN else gain) * (most or CHUNK), 1.5 * (most or CHUNK))
        return tuner.reason

    three = ngram_plan(3)
    assert "no trial of drafts promised to pay; n-grams foretell 1.02" in reported([three], 1, lambda _: 1.02)
    assert reported([three], 4, lambda _: 4.0) == "ngram, 3 nodes was 4.00x as fast as plain decoding"
    assert reported([plan(3)], 1, lambda _: None).startswith("fused, 3 nodes was tried at 1.00x")
    assert reported([], 1, lambda _: None) == "the checkpoint allows no drafts"


@pytest.mark.parametrize("price", [1.2, 1.5, 3.0])
def test_a_foresight_that_errs_costs_little(price):
    """It promises 3 tokens an iteration of a text that gives 1."""
    prices = {ngram_plan(3): price, ngram_plan(7): 2 * price}
    speed, _ = simulate(prices, nothing, foreseen=lambda named, read: 3.0)
    assert speed >= 0.96


@pytest.mark.parametrize("price", [1.02, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize("count", [1, 3])
def test_what_never_accepts_costs_at_most_three_percent(price, count):
    prices = {plan(i + 1): 1 + (price - 1) * (1 + i / 2) for i in range(count)}
    speed, log = simulate(prices, nothing)
    assert speed >= 0.97
    assert share(log, PLAIN) * speed >= 0.97, "of all the work so much is plain decoding"
    assert {named for named, *_ in log} >= {PLAIN, next(iter(prices))}  # it was tried


@pytest.mark.parametrize("tokens", [40, 64, 200, 1000, 20000])
def test_other_lengths_lose_little_too(tokens):
    prices = {plan(3): 1.25, plan(7): 1.7, plan(15): 2.2}  # a CPU's
    speed, _ = simulate(prices, nothing, tokens)
    assert speed >= (0.97 if tokens > 200 else 0.95)


def mean_time(prices, gains, noise, catch_ups):
    """Time relative to plain decoding's, the mean of enough runs for the waverings to cancel out."""
    runs = 50 if noise else 1
    return np.mean(
        [1 / simulate(prices, gains, noise=noise, seed=seed, catch_ups=catch_ups)[0] for seed in range(runs)]
    )


@pytest.fixture
def cpu():
    """A CPU's plans with their prices, and what catching up with each costs after 8,192 tokens."""
    prices = {plan(1): 1.15, plan(3): 1.3, plan(7): 1.75, plan_with_a_cache(7): 2.0}
    catch_ups = dict(zip(prices, (0.1, 0.1, 0.1, 9.0), strict=True))
    return prices, catch_ups


@pytest.mark.parametrize("rebuild", [0.5, 3.0, 9.0, 20.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_useless_drafts_and_catching_up_stay_within_the_three_percent(cpu, rebuild, noise):
    """A rebuilding of 20 steps is twice the dearest that was measured."""
    prices, catch_ups = cpu
    *_, cached = prices
    costs = {**catch_ups, cached: rebuild}
    speed, log = simulate(prices, nothing, catch_ups=costs)
    assert share(log, PLAIN) * speed >= 0.97
    assert mean_time(prices, nothing, noise, costs) <= 1 / 0.97


@pytest.mark.parametrize("period", [40, 100, 300, 700])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_text_that_comes_and_goes_with_costly_changes_of_plan(cpu, period, noise):
    """Only the plan with the cache ever accepts, and never for long: every change to it costs nine steps."""
    prices, catch_ups = cpu
    *_, cached = prices

    def gains(named, position, rng):
        return 5 if named is cached and (position // period) % 2 == 0 else 1

    assert mean_time(prices, gains, noise, catch_ups) <= 1 / 0.97


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_plan_with_the_costly_catch_up_is_found_where_it_pays(cpu, noise):
    prices, catch_ups = cpu
    *_, cached = prices
    for seed in range(10 if noise else 1):
        speed, log = simulate(
            prices, lambda named, *_: 4 if named is cached else 1, noise=noise, seed=seed, catch_ups=catch_ups
        )
        assert share(log, cached) > 0.8
        assert speed > 1.5


def test_plans_that_keep_a_draft_cache_are_tried_last():
    cached, other = plan_with_a_cache(7), plan(3)
    _, log = simulate({cached: 1.2, other: 1.2}, nothing)
    assert next(named for named, *_ in log if named is not PLAIN) is other
    assert cached in [named for named, *_ in log]


def test_a_text_too_short_for_the_rebuilding_does_not_try_it():
    """2% of 300 tokens are 6 steps, fewer than a rebuilding is taken to cost."""
    cached = plan_with_a_cache(7)
    speed, log = simulate({cached: 1.2}, nothing, tokens=300, catch_ups={cached: 9.0})
    assert (speed, {named for named, *_ in log}) == (1.0, {PLAIN})


def test_catching_up_is_lost_time_and_no_pace():
    """An iteration that gave two tokens for one second, after a catch-up that costs more than may be lost."""
    named = plan_with_a_cache(3)
    tuner = Tuner(PLAIN, [named], 10**6)
    for _ in range(2):
        tuner.observe(*tuner.next_plan(), 32.0)
    assert tuner.next_plan() == (named, 1)
    tuner.observe(named, 2, 1.0, catch_up=60.0)
    assert not tuner.trying, "nothing more may be lost"
    assert tuner.current is PLAIN
    tokens = 66
    while not tuner.trying:
        tuner.observe(PLAIN, 32, 32.0)
        tokens += 32
    # Lost are 59 steps; with the 60 of the next attempt they are 2% of 5,950 tokens. Rounds are 512 tokens apart.
    assert 5950 < tokens < 5950 + 512 + 32
    tuner.observe(named, 1, 0.5, catch_up=1.0)
    assert tuner.next_plan() == (named, 4), "half of plain decoding's time: the catch-up does not count"


@pytest.mark.parametrize(("pace", "first_taken"), [(0.52, True), (0.505, False)])
def test_going_back_to_a_slightly_faster_plan_has_to_repay_its_catch_up(pace, first_taken):
    """526 tokens are left; the plan tried first saves 10.5 or 2.6 seconds of them, and costs 5 to take up again."""
    first, last = plan_with_a_cache(3), plan_with_a_cache(7)
    tuner = Tuner(PLAIN, [first, last], 600)
    while tuner.trying:
        named, iterations = tuner.next_plan()
        seconds = iterations * {PLAIN: 1.0, first: 0.5, last: pace}[named]
        tuner.observe(named, iterations, seconds, catch_up=5.0 if iterations == 1 else 0.0)
    assert tuner.current is (first if first_taken else last)


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


def test_noisy_gains_are_distinguished_from_noisy_losses():
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


def test_a_plan_that_still_pays_gives_way_to_one_that_became_better():
    """As the text grows: every STAY tokens the plan in use is compared with the others, at the present length."""
    first, later = plan(3), plan(7)
    turn = 2500
    prices, better = {first: 1.25, later: 1.75}, {first: 2, later: 5}
    _, log = simulate(
        prices, lambda named, position, _: 1 if named is later and position < turn else better[named], 9000
    )
    assert share([entry for entry in log if 200 < entry[1] < turn], first) > 0.95
    assert share([entry for entry in log if entry[1] > turn + STAY + 2 * CHUNK], later) > 0.95
    taken = next(begun for named, begun, count in log if named is later and count >= CHUNK)
    assert turn < taken <= turn + STAY + 4 * CHUNK


@pytest.mark.parametrize("price", [1.25, 1.7, 2.2, 5.0])
@pytest.mark.parametrize("begin", [0, 1])
def test_a_text_that_changes_against_it_loses_little(price, begin):
    """Every 100 tokens drafts turn from perfect to useless: every measurement is soon wrong."""
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


def test_one_slow_iteration_does_not_keep_a_plan_from_being_tried_again():
    """Its first iteration takes 30 seconds, as if another program had interfered; later ones give 4 tokens for 1.25."""
    named = plan(3)
    tuner, tokens, tried = Tuner(PLAIN, [named], 10**6), 0, 0
    while tuner.current is PLAIN:
        one, most = tuner.next_plan()
        gained = min(CHUNK if most is None else most * (1 if one is PLAIN else 4), CHUNK)
        tried += one is named
        tuner.observe(one, gained, gained if one is PLAIN else 30.0 if tried == 1 else 1.25 * gained / 4)
        tokens += gained
        assert tokens < 2000
    assert tried == 3  # the slow one; then, after some rounds, one for the price and a piece


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
