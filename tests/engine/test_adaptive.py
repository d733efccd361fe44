"""The choice of plans on a simulated device: its speed relative to plain decoding and to the best plan, on any text."""

from itertools import pairwise

import numpy as np
import pytest
from simulated_device import (
    CPU,
    DEMO_EARLIER,
    EARLIER,
    PLAIN,
    Device,
    decoding,
    demo_replayed,
    fused,
    heads,
    ngram,
    ngrams,
    partial,
    replayed,
    stored_texts,
)

from tokenswift_jax.engine.adaptive import CHECKED_AGAIN, FIRST, LATER, Chooser


def share(log, named):
    return sum(tokens for one, _, tokens, _ in log if one is named) / sum(tokens for _, _, tokens, _ in log)


def both(prices=CPU):
    """Iterations of heads cost a fifth of a plain step more."""
    return ngrams(prices) | heads({nodes: price + 0.2 for nodes, price in prices.items()})


def nothing(named, position):
    return 1


STEPS = pytest.mark.parametrize("step", [0.0006, 0.03])  # the demo's and SmolLM2's


@pytest.mark.parametrize("tokens", [256, 2048])
@STEPS
@pytest.mark.parametrize("best", [1, 3, 7])
def test_the_best_plan_runs_from_the_first_token(tokens, step, best):
    prices = heads()
    rates = {named: 2 for named in prices} | {named: 4 for named in prices if named.node_budget == best}
    device = Device(prices, lambda named, _: rates[named], lambda named, _: rates[named], tokens=tokens, step=step)
    speed, log = device.run()
    assert log[0][0].node_budget == best
    assert share(log, log[0][0]) == 1
    assert speed >= 0.95 * device.best()


@pytest.mark.parametrize("tokens", [64, 128, 256, 2048])
@STEPS
@pytest.mark.parametrize("plans", [ngrams, heads, both])
@pytest.mark.parametrize("prices", [CPU, {1: 1.05, 3: 1.1}, {1: 1.6, 3: 2.3, 7: 2.9}])
@pytest.mark.parametrize("promised", [1.0, 2.5, 4.0])
def test_hostile_text_costs_at_most_three_percent(tokens, step, plans, prices, promised):
    """No draft is ever accepted, and knowledge promises some all the time."""
    device = Device(plans(prices), nothing, lambda *_: promised, tokens=tokens, step=step, remembered=False)
    speed, log = device.run()
    assert speed >= 0.97
    if promised == 1.0 and plans is ngrams:
        assert share(log, PLAIN) == 1, "nothing is tried"


@pytest.mark.parametrize("tokens", [100, 192, 512])
@pytest.mark.parametrize("step", [0.002, 0.022])
@pytest.mark.parametrize("prices", [CPU, {1: 1.05, 3: 1.1}, {1: 1.6, 3: 2.3, 7: 2.9}])
@pytest.mark.parametrize("liars", [{"ngram"}, {"tokenswift"}, {"ngram", "tokenswift"}])
@pytest.mark.parametrize("turn", [0, 8, 48, 90])
def test_text_that_turns_hostile_costs_at_most_three_percent(tokens, step, prices, liars, turn):
    """The drafts of one source, or of both, come true until their gains may be spent, and are promised to the end."""
    device = Device(
        both(prices),
        lambda named, at: 4 if named.mode in liars and at < turn else 1,
        lambda named, _: 4.0 if named.mode in liars else 1.0,
        tokens=tokens,
        step=step,
        remembered=False,
    )
    speed, _ = device.run()
    assert speed >= 0.97


@pytest.mark.parametrize("period", [16, 40, 100, 300])
@pytest.mark.parametrize("lag", [0, 12, 40])
@pytest.mark.parametrize("price", [1.2, 1.5, 2.3])
def test_text_that_comes_and_goes_costs_at_most_three_percent(period, lag, price):
    """N-grams come true in every other period; the foresight notices after `lag` tokens."""

    def good(position):
        return position // period % 2 == 1

    device = Device(
        {ngram(3): price},
        lambda _, position: 4 if good(position) else 1,
        lambda _, read: 3.7 if good(max(read - lag, 0)) else 1.0,
        tokens=2048,
    )
    speed, _ = device.run()
    assert speed >= 0.97
    if period >= 100 and lag <= 12 and price < 2:
        assert speed >= 0.8 * 2 / (1 + price / 4)


@pytest.mark.parametrize("tokens", [256, 2048])
@pytest.mark.parametrize("seed", range(4))
def test_waverings_of_clock_and_luck_leave_the_best_plan_in_use(tokens, seed):
    """Tokens by luck, 1.9 on average for three nodes; chunks of up to 1.4 times their time."""
    random = np.random.default_rng(seed)
    means = {1: 1.4, 3: 1.9, 7: 2.0}

    def gain(named, _):
        return min(1 + random.geometric(1 / means[named.node_budget]) - 1, 4)

    device = Device(heads(), gain, lambda named, _: means[named.node_budget], tokens=tokens, noise=0.4, seed=seed)
    speed, _ = device.run()
    assert speed >= max(0.97, 0.75 * means[3] / 1.5) / 1.2  # the clock itself is slower by 1.2


def test_a_plan_that_stops_paying_is_left_after_one_chunk():
    chosen = ngram(7)
    device = Device({chosen: 2.0}, lambda _, at: 4 if at < 1000 else 1, lambda *_: 4.0, tokens=2048)
    _, log = device.run()
    assert share([entry for entry in log if entry[1] < 900], chosen) == 1
    after = [entry for entry in log if entry[1] >= 1000]
    left = next(index for index, entry in enumerate(after) if entry[0] is PLAIN)
    assert left <= 2, "the chunk that shows it, and the one under way"
    assert max(iterations for *_, iterations in log) <= LATER


@pytest.mark.parametrize(("asked", "tokens", "ahead"), [(256, 8, True), (64, 2, False)])
def test_chunks_run_ahead_once_the_account_can_lose_two(asked, tokens, ahead):
    """A plan's first chunk is read before another is sent. In a short text, so is the next one after a small gain."""
    chosen = ngram(3)
    chooser = Device({chosen: 1.5}, nothing, lambda *_: 4.0, tokens=asked).chooser
    chooser.admit(chosen)
    named, first = chooser.next_plan()
    assert named is chosen
    assert first <= FIRST
    assert chooser.reads_first
    chooser.observe(chosen, tokens, first, first * 1.5 * 0.022)
    assert chooser.next_plan()[0] is chosen
    assert chooser.reads_first is not ahead


@pytest.mark.parametrize("begins", [0, 100])
def test_a_foreseen_gain_is_taken_at_once(begins):
    chosen = ngram(3)
    device = Device(
        {chosen: 1.5}, lambda _, at: 4 if at >= begins else 1, lambda _, read: 3.0 if read >= begins + 8 else 1.0
    )
    speed, log = device.run()
    first = next(begun for named, begun, *_ in log if named is chosen)
    assert first <= begins + 8 + 2 * 4
    assert speed >= 0.9 * 256 / (begins + (256 - begins) / 4 * 1.5)


@pytest.mark.parametrize("true", [1.0, 3.0])
def test_a_wrong_price_is_found_out(true):
    """The kept price is 1.6 and drafts give 2 tokens: at the true price plain decoding is faster, or far slower."""
    chosen = fused(3)
    device = Device({chosen: true}, lambda *_: 2, lambda *_: 2.0, believed={chosen: 1.6}, tokens=1024)
    speed, log = device.run()
    assert speed >= (0.965 if true > 2 else 1.9)
    assert share(log, PLAIN) > 0.85 if true > 2 else share(log, chosen) > 0.95


@pytest.mark.parametrize("slowdown", [0.5, 2.0, 5.0])
def test_a_machine_of_another_speed_than_before_keeps_its_plans(slowdown):
    """Plain steps and iterations alike take another time than on earlier texts: from the beginning, or from 500 on."""
    for begins in (0, 500):
        chosen = fused(3)
        device = Device({chosen: 1.5}, lambda *_: 2, lambda *_: 2.0, tokens=1024, slower=(begins, slowdown))
        _, log = device.run()
        assert share(log, chosen) > 0.85


def test_one_disturbed_chunk_does_not_lose_a_plan():
    chosen = fused(3)
    device = Device({chosen: 1.5}, lambda *_: 3, lambda *_: 3.0, tokens=1024)
    device.chooser.admit(chosen)
    device.chooser.observe(chosen, 18, 6, 6 * 1.5 * 0.03 * 20)
    _, log = device.run()
    assert share(log, chosen) > 0.9


def test_drafts_that_nothing_foretells_are_looked_at_at_once_and_again_now_and_then():
    chosen = fused(3)
    device = Device({chosen: 1.6}, nothing, lambda *_: None, tokens=8192, remembered=False)
    speed, log = device.run()
    looks = [begun for (named, begun, *_), (last, *_) in zip(log[1:], log, strict=False) if named is chosen is not last]
    assert log[0][0] is chosen
    gaps = np.diff([0, *looks])
    assert len(gaps) >= 4
    assert gaps.min() >= CHECKED_AGAIN
    assert gaps.max() > 2 * CHECKED_AGAIN
    assert speed >= 0.98


def test_heads_that_begin_to_pay_are_found():
    chosen = fused(3)
    device = Device({chosen: 1.5}, lambda _, at: 4 if at >= 1000 else 1, lambda *_: 1.2, tokens=4096)
    _, log = device.run()
    late = [entry for entry in log if entry[1] > 2200]
    assert share(late, chosen) > 0.9


def test_a_short_text_does_not_rebuild_a_draft_cache_for_nothing():
    """A rebuild costs 8 steps: 2% of 400 tokens. Drafts that save a third of the time are worth it from then on."""
    for tokens, ran in ((300, False), (4000, True)):
        cached = partial(7)
        device = Device({cached: 2.0}, lambda *_: 3, lambda *_: 3.0, tokens=tokens, catch_up=8.0)
        speed, log = device.run()
        assert (share(log, cached) > 0.8) is ran
        assert speed >= 0.97


def test_a_mode_asked_for_by_name_always_drafts():
    """No draft is accepted; the cheapest plan runs."""
    prices = heads()
    _, log = Device(prices, nothing, lambda *_: None, always=True).run()
    assert PLAIN not in {named for named, *_ in log}
    assert share(log, next(iter(prices))) > 0.5


@pytest.mark.parametrize("prices", [CPU, {1: 1.1, 3: 1.2, 7: 1.5}, {1: 1.5, 3: 2.2, 7: 2.3}])
def test_texts_of_a_model_are_decoded_almost_as_fast_as_with_their_best_plan(prices):
    """Texts of SmolLM2: quotations, edits, JSON, chats, code, a book."""
    for name, stored in stored_texts().items():
        if len(stored["ids"]) < 256:
            continue
        device = decoding(stored, prices)
        speed, _ = device.run()
        assert speed >= 0.97, name
        assert speed >= 0.95 * device.best(), name


@pytest.mark.parametrize("earlier", EARLIER)
def test_heads_and_ngrams_are_both_found_on_short_and_long_texts(earlier):
    """The same texts and answers of 128 tokens to prompts of 1,024, with the heads that SmolLM2 has. Some of these gain
    half of their time by n-grams alone, some by heads alone, and the prompt tells little about heads."""
    speeds = replayed(earlier)
    assert min(plain for plain, _ in speeds.values()) >= 0.97
    assert np.mean([best for _, best in speeds.values()]) >= 0.93
    assert min(best for _, best in speeds.values()) >= 0.8
    assert speeds["JSON list, darwin_voyage_of_the_beagle, 1024, 0.0", 127][0] >= 1.45


@pytest.mark.parametrize("earlier", DEMO_EARLIER)
def test_plans_of_a_device_whose_steps_are_shorter_than_a_switch(earlier):
    """Texts of the demo: to switch costs about two plain steps, so a first chunk must be long enough to pay for it."""
    speeds = demo_replayed(earlier)
    assert min(plain for plain, _ in speeds.values()) >= 0.97
    for length, least in (("256", 0.87), ("2048", 0.94)):
        assert np.mean([best for name, (_, best) in speeds.items() if length in name.split()]) >= least
    assert speeds["quote 256 0.0"][0] >= 1.3


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_device_on_which_a_switch_costs_many_steps_keeps_the_plan_that_pays(measured, seed):
    """As an H200 with SmolLM2: a chunk alone costs as much as seven plain steps. A price that was never measured is
    measured once, by plain chunks."""
    tokens = np.random.default_rng(seed).choice([1, 2, 3, 4], 2100, p=[0.4, 0.25, 0.2, 0.15])
    plan, h200 = fused(15), {"tokens": 2048, "step": 0.00104, "overhead": 0.007, "measured": measured}
    device = Device({plan: 1.48}, lambda _, at: int(tokens[at]), lambda *_: 2.1, noise=0.03, seed=seed, **h200)
    speed, log = device.run()
    assert speed >= 0.92 * device.best()
    assert sum(one[0] is not other[0] for one, other in pairwise(log)) == (0 if measured else 2)
    hostile = Device({plan: 1.48}, lambda *_: 1, lambda *_: 2.1, **h200)
    assert hostile.run()[0] >= 0.96


def test_no_plans_no_choice():
    chooser = Chooser(PLAIN, [], 100, Device({}, nothing, nothing))
    chooser.observe(PLAIN, 32, 32, 1.0)
    assert chooser.next_plan() == (PLAIN, None)
    assert chooser.reason == "the checkpoint allows no drafts"


def test_the_reason_says_what_is_known():
    def reason_for(gain, foreseen, tokens=256):
        device = Device({ngram(3): 1.5}, gain, foreseen, tokens=tokens)
        device.run()
        return device.chooser.reason

    assert reason_for(lambda *_: 4, lambda *_: 4.0) == (
        "ngram, 3 nodes, 4.00 tokens an iteration for the time of 1.50 plain steps"
    )
    assert reason_for(nothing, lambda *_: 1.1) == (
        "plain decoding; of drafts, ngram, 3 nodes would be best with 1.10 tokens an iteration for the time of 1.50 "
        "plain steps"
    )
