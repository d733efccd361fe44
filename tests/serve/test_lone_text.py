"""A text that is alone in its pool takes the plans that pay, and its tokens do not depend on them."""

import functools
from dataclasses import replace

import pytest
from decoded import assert_same, decode_requests
from houses import LONG, model
from speculations import SPECULATIONS

from tokenswift_jax.engine.step_costs import StepCosts
from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.lone_text import lone_texts
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.serve.pool import Pool, PoolSize
from tokenswift_jax.serve.run import Run, RunState
from tokenswift_jax.serve.scheduler import Scheduler
from tokenswift_jax.speculation import SpeculationConfig

FEATURES = SamplingFeatures.GREEDY
GREEDY = SamplingConfig(temperature=0.0)
NEW = 250


@functools.cache
def plan_set():
    return PlanSet(model().config, SpeculationConfig(), (FEATURES,))


@functools.cache
def pool():
    """A pool of mode `auto` with one slot, ready."""
    made = Pool(model(), PoolSize(1, LONG.length), plan_set())
    made.warm_up()
    return made


@functools.cache
def request():
    """The prompt is a text of the model, whose drafts come true."""
    (text,) = decode_requests(model(), [Request((5, 17, 3), GREEDY, 100)], SPECULATIONS["plain"])
    return Request(tuple(text.tokens), GREEDY, NEW)


def knowledge(prices):
    """The knowledge at such prices of drafts by heads and by n-grams; a plain step takes 30 ms."""
    made = lone_texts(model(), 1, plan_set())
    assert made is not None
    made.costs = StepCosts()
    plain, plans = plan_set().choices(FEATURES, ngrams=True)
    made.costs.add_plain_seconds(plain, 100, 0.03)
    for named, price in zip(plans, prices, strict=True):
        made.costs.add_price(named, 100, price)
    return made


@pytest.mark.parametrize(("prices", "best"), [((9.0, 9.0), 0), ((1.02, 9.0), 1), ((9.0, 1.02), 2)])
def test_a_lone_text_takes_the_plan_that_pays(monkeypatch, prices, best):
    """The times of the test's machine count for nothing. All programs are compiled before."""
    compiled = pool().engine.programs.compile_seconds
    monkeypatch.setattr(pool(), "lone", knowledge(prices))
    chunks = []

    def learn(flight, result, seconds):
        chunks.append(flight.chosen)
        Pool.learn(pool(), flight, result, None)

    monkeypatch.setattr(pool(), "learn", learn)
    scheduler = Scheduler([pool()], lambda run, update: None)
    run = Run(request())
    scheduler.submit(run)
    scheduler.submit(other := Run(replace(request(), max_new_tokens=9)))  # it enters after the first one's drafts
    while scheduler.turn():
        pass
    assert run.state is other.state is RunState.FINISHED
    assert pool().engine.programs.compile_seconds == compiled
    plain, plans = plan_set().choices(FEATURES, ngrams=True)
    assert [named.mode for named in plans] == ["tokenswift", "ngram"]
    inserted, *chosen = chunks
    assert inserted is None
    expected = [plain, *plans][best]
    assert chosen.count(expected) > len(chosen) / 2, [named.label for named in chosen]
    (text,) = decode_requests(model(), [request()], SPECULATIONS["plain"])
    assert_same(run.tokens, text.tokens)


def test_a_chunk_beside_others_tells_nothing_of_the_plans():
    """The pool chose its plan; the text has its tokens, and the account of its own drafts stays as it was."""
    known = knowledge((9.0, 1.02))
    lone = known.begin(Run(request()), None, pool().engine)
    plain, plans = plan_set().choices(FEATURES, ngrams=True)
    lone.took(None, [1, 2, 3, 4] * 8, 32, None)
    assert known.costs.plain_seconds(plain, 100) == 0.03
    assert lone.tokens(plans[1]) > 1.5, "its n-grams were read"
    lone.close()
    assert known.costs.tokens_an_iteration(plans[1]) is None


def test_a_predicted_text_is_drafted_at_first():
    """Then it is a text as any other; here no draft pays."""
    known = knowledge((9.0, 9.0))
    lone = known.begin(Run(replace(request(), predicted_ids=(1, 2, 3))), None, pool().engine)
    plain, (heads, _) = plan_set().choices(FEATURES, ngrams=True)
    named, tokens = lone.next_plan()[0], 0
    while named is heads:
        lone.took(heads, [4, 5], 2, None)
        named, tokens = lone.next_plan()[0], tokens + 2
    assert named is plain
    assert tokens == 64


@pytest.mark.parametrize(
    ("speculation", "slots", "chooses"),
    [
        (SpeculationConfig(), 1, True),
        (SpeculationConfig(), 3, True),
        (SpeculationConfig(mode="tokenswift", schedule="fused"), 1, False),
        (SpeculationConfig(mode="autoregressive"), 1, False),
    ],
)
def test_texts_choose_where_no_mode_is_named(speculation, slots, chooses):
    plans = PlanSet(model().config, speculation, (FEATURES,))
    found = lone_texts(model(), slots, plans)
    assert (found is not None) == chooses
    if found is not None:
        modes = {named.mode for named in found.programs}
        assert modes == ({"autoregressive", "ngram"} if slots == 1 else {"autoregressive"})


def test_a_checkpoint_without_heads_drafts_by_ngrams_for_a_lone_text():
    headless = replace(model().config, num_draft_heads=0)
    plans = PlanSet(headless, SpeculationConfig(), (FEATURES,))
    assert not plans.drafts
    _, drafting = plans.choices(FEATURES, ngrams=True)
    assert [named.mode for named in drafting] == ["ngram"]
    assert PlanSet(headless, SpeculationConfig(ngram_k=0), (FEATURES,)).ngrams == []
