"""Foreseen n-gram drafts against a replay by a plain search of the text, and against the device's own acceptance."""

from collections import Counter

import numpy as np
import pytest
import small_models

import tokenswift_jax as ts
from tokenswift_jax.engine.foresight import DISCOUNT, DOUBT, REPLAYED, NgramForesight

SLOTS = 64  # as many as there are continuations of one of 4 tokens


def searched(text, start, budget, most, lag):
    """Tokens of each iteration from root `start` on, by counting every 4-gram before the root again. An iteration needs
    4 tokens below its root to be counted, so that all budgets wait for the same text."""
    depth = 3 if budget is None else min(3, budget)
    count = most if budget is None else max(1, min(most, budget // 3))
    root, emitted = start, []
    while root + 4 < len(text):
        seen, newest = Counter(), {}
        for end in range(3, max(root + 1 - lag, 0)):
            if text[end - 3] == text[root]:
                rest = tuple(text[end - 2 : end + 1])
                seen[rest] += 1
                newest[rest] = end
        drafts = sorted(seen, key=lambda rest: (-seen[rest], -newest[rest]))[:count]
        right = 0
        for draft in drafts:
            agreeing = 0
            while agreeing < depth and draft[agreeing] == text[root + 1 + agreeing]:
                agreeing += 1
            right = max(right, agreeing)
        root += 1 + right
        emitted.append(1 + right)
    return emitted


@pytest.mark.parametrize("lag", [0, 5])
@pytest.mark.parametrize("budget", [1, 2, 3, 7, None])
def test_estimates_are_those_of_a_plain_search(budget, lag):
    rng = np.random.default_rng(0)
    text = rng.integers(0, 4, 300).tolist() + [1, 2, 3, 0] * 20 + rng.integers(0, 4, 37).tolist()
    foresight = NgramForesight([text[:90]], [lag], [budget], 20, SLOTS)
    at = 90
    for size in [1, 2, 100, 33, 32, 7] * 9:
        foresight.read(0, text[at : at + size])
        at += size
        emitted = [1, *searched(text[:at], 89 - REPLAYED, budget, 20, lag)]
        weights = DISCOUNT ** np.arange(len(emitted))[::-1] * np.where(np.arange(len(emitted)), 1, DOUBT)
        assert foresight.tokens_an_iteration(budget) == pytest.approx(np.average(emitted, weights=weights))


def test_a_new_continuation_replaces_the_rarest_and_oldest():
    """With two slots, 1 is followed by 2 2 2 twice, then once by each of two others: the first of these goes."""
    text = [1, 2, 2, 2, 1, 2, 2, 2, 1, 3, 3, 3, 1, 4, 4, 4]
    for asked, known in (((2, 2, 2), True), ((4, 4, 4), True), ((3, 3, 3), False)):
        foresight = NgramForesight([[*text, 1]], [0], [None], 2, 2)
        before = foresight.tokens_an_iteration(None)
        foresight.read(0, [*asked, 9])
        assert (foresight.tokens_an_iteration(None) > before) is known


def test_a_prompt_that_repeats_itself_is_foreseen_before_the_first_token():
    repeated = NgramForesight([list(range(10)) * 8], [0], [3], 20, SLOTS)
    assert repeated.tokens_an_iteration(3) > 3.5
    assert NgramForesight([list(range(80))], [0], [3], 20, SLOTS).tokens_an_iteration(3) == 1.0


def test_several_budgets_do_not_disturb_each_other():
    rng = np.random.default_rng(1)
    text = rng.integers(0, 5, 400).tolist()
    together = NgramForesight([text[:30]], [2], [1, 3, 7, None], 20, SLOTS)
    together.read(0, text[30:])
    for budget in (1, 3, 7, None):
        alone = NgramForesight([text[:30]], [2], [budget], 20, SLOTS)
        alone.read(0, text[30:])
        assert alone.tokens_an_iteration(budget) == together.tokens_an_iteration(budget)


def test_the_least_of_the_running_rows_counts():
    foresight = NgramForesight([[0] * 80, list(range(8))], [0, 0], [3], 20, SLOTS)
    foresight.read(0, [0] * 40)
    foresight.read(1, list(range(10, 50)))
    assert foresight.tokens_an_iteration(3) == 1.0
    foresight.end(1)
    assert foresight.tokens_an_iteration(3) > 3.9
    foresight.end(0)
    assert foresight.tokens_an_iteration(3) == 1.0


def test_it_foresees_what_the_device_accepts():
    """A model whose greedy text goes round in cycles: n-grams foresee all of it, and the device accepts it."""
    model = small_models.successor_model(heads=0, context=0.0, cycle=8)
    chosen = ts.SpeculationConfig(mode="ngram", node_budget=3)
    greedy = ts.SamplingConfig(temperature=0.0)
    out = ts.generate(model, [5, 17, 3], greedy, chosen, max_new_tokens=200)
    foresight = NgramForesight([[5, 17, 3]], [0], [3], chosen.ngram_k, chosen.ngram_slots)
    foresight.read(0, out.token_ids)
    assert foresight.tokens_an_iteration(3) > 3.9
    assert out.mean_accepted_length > 3.5
