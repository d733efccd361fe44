"""A row's tokens are those of its request alone, even if other rows enter and leave beside it."""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from decoded import assert_same, decode_requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speculations import SPECULATIONS

from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.engine.prefill import Prefix
from tokenswift_jax.errors import UserError
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.dense import BLOCK
from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.plans import autoregressive_plan, speculative_plans

SLOTS, CAPACITY, NEW = 3, 512, 60
MODES = ("plain", "fused", "partial", "ngram")
SETTINGS = (
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.3, top_p=0.9, repetition_penalty=1.2, penalty_window=24, seed=7),
    SamplingConfig(min_p=0.05, suppress_tokens=(0, 5), seed=1, sequence=11),
    SamplingConfig(top_k=6, min_tokens_to_keep=2, seed=2),
)


@functools.cache
def model():
    return small_models.with_eos(small_models.successor_model(layers=1, certainty=6.0, context=0.8), 36)


@functools.cache
def request(index):
    """Prompts of 2 to 300 tokens: on both sides of a prefill chunk, a draft cache and a block of attention."""
    random = np.random.default_rng(index)
    length = (2, 290, 40, 100, 70)[index % 5]
    prompt = tuple(random.integers(0, small_models.VOCAB, length).tolist())
    return Request(prompt, SETTINGS[index % len(SETTINGS)], NEW - 7 * (index % 3), 0, ((), (36,))[index % 2])


@functools.cache
def alone(index):
    (text,) = decode_requests(model(), [request(index)], SPECULATIONS["plain"])
    return text


@functools.cache
def named_plans():
    """One plan a mode; partial and ngram share the table of the others."""
    found = {"plain": autoregressive_plan(model().config, SamplingFeatures.FILTERED)}
    for mode in MODES[1:]:
        speculation = SPECULATIONS[mode]
        found[mode] = speculative_plans(model().config, speculation, SamplingFeatures.FILTERED, "cpu")[0]
    return found


def new_engine(slots=SLOTS, of=None):
    of = model() if of is None else of
    drafting = [named.plan for name, named in named_plans().items() if name != "plain"]
    layout = Layout.of(of.config, jnp.dtype(jnp.float32), CAPACITY, SamplingFeatures.FILTERED, drafting)
    return Engine(of, layout, slots)


@dataclass
class House:
    """An engine and who lives in it, driven as a server would drive it."""

    engine: Engine = field(default_factory=new_engine)
    plan: str = "plain"
    tenants: dict = field(default_factory=dict)  # slot -> (index, tokens so far)
    coming: list = field(default_factory=list)  # prefills under way, with their index
    ended: dict = field(default_factory=dict)

    def arrive(self, index, emitted=()):
        self.coming.append((index, list(emitted), self.engine.prefill([request(index)], [list(emitted)])))

    def advance(self):
        """One chunk of the oldest prompt; a prompt that is read takes a vacant slot."""
        if not self.coming:
            return
        index, emitted, prefill = self.coming[0]
        prefill.advance()
        vacant = [slot for slot in range(self.engine.slots) if slot not in self.tenants]
        if prefill.finished and vacant:
            self.coming.pop(0)
            result = self.engine.insert(prefill, [vacant[-1]]).result()
            self.tenants[vacant[-1]] = (index, emitted)
            self.note(result, {0: vacant[-1]})

    def step(self, iterations):
        named = named_plans()[self.plan]
        self.engine.prepare(named)
        self.note(self.engine.step(named, iterations).result(), {slot: slot for slot in range(self.engine.slots)})

    def note(self, result, slots):
        for row, slot in slots.items():
            if slot not in self.tenants:
                assert result.counts[row] == 0
                continue
            index, tokens = self.tenants[slot]
            tokens += result.records[row, : result.counts[row], 0].tolist()
            if result.finish[row] != Finish.RUNNING:
                self.ended[index] = tokens
                self.leave(slot)

    def leave(self, slot):
        del self.tenants[slot]
        self.engine.evict([slot])

    def finish(self):
        while self.tenants or self.coming:
            self.advance()
            if self.tenants:
                self.step(None)


actions = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, 9)),
    st.tuples(st.just("advance"), st.just(0)),
    st.tuples(st.just("step"), st.sampled_from([1, 2, 5, None])),
    st.tuples(st.just("plan"), st.sampled_from(MODES)),
    st.tuples(st.just("cancel"), st.integers(0, SLOTS - 1)),
    st.tuples(st.just("resume"), st.integers(0, 9)),
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule=st.lists(actions, min_size=10, max_size=40))
def test_any_schedule_gives_every_row_the_text_it_has_alone(schedule):
    house, seen, cancelled = House(), set(), {}
    for action, value in schedule:
        if action == "arrive" and value not in seen:
            seen.add(value)
            house.arrive(value)
        elif action == "resume" and value not in seen:
            seen.add(value)
            house.arrive(value, alone(value).tokens[: 1 + value])
        elif action == "advance":
            house.advance()
        elif action == "step" and house.tenants:
            house.step(value)
        elif action == "plan":
            house.plan = value
        elif action == "cancel" and value in house.tenants:
            index, tokens = house.tenants[value]
            cancelled[index] = tokens
            house.leave(value)
    house.finish()
    house.engine.close()
    for index, tokens in house.ended.items():
        assert_same(tokens, alone(index).tokens)
    for index, tokens in cancelled.items():
        assert_same(tokens, alone(index).tokens[: len(tokens)])
    assert set(house.ended) | set(cancelled) == seen


def test_two_prompts_and_a_text_take_turns():
    """Chunks of two prompts enter between the chunks of a text that decodes."""
    house = House(plan="fused")
    house.arrive(0)
    house.advance()
    house.arrive(1)
    house.arrive(6)
    turns = 0
    while house.coming:
        house.step(1)
        house.advance()
        turns += 1
    assert turns >= 3
    house.finish()
    for index in (0, 1, 6):
        assert_same(house.ended[index], alone(index).tokens)


def test_a_cancelled_row_frees_its_slot_within_one_chunk():
    house = House(engine=new_engine(1), plan="plain")
    house.arrive(3)
    house.advance()
    house.step(4)
    house.leave(0)
    house.arrive(4)
    house.advance()
    assert 0 in house.tenants
    house.finish()
    assert_same(house.ended[4], alone(4).tokens)


@pytest.mark.parametrize("cut", [200, 256, 280])
def test_a_prefix_is_reused(cut):
    """The second prompt begins as the first text does; its whole chunks are copied, the rest is computed."""
    engine = new_engine()
    first = engine.prefill([request(1)])
    engine.insert(first, [2])
    kept = engine.prefix(2, request(1).prompt_ids[:cut])
    longer = replace(request(1), prompt_ids=(*request(1).prompt_ids[:cut], *request(3).prompt_ids))
    prefill = engine.prefill([longer], prefix=kept)
    assert prefill.reused == (0 if cut < 256 else 256)
    house = House(engine=engine, plan="fused")
    house.ended.clear()
    result = engine.insert(prefill, [0]).result()
    house.tenants[0] = ("longer", result.records[0, : result.counts[0], 0].tolist())
    engine.evict([2])
    house.finish()
    (expected,) = decode_requests(model(), [longer], SPECULATIONS["plain"])
    assert_same(house.ended["longer"], expected.tokens)


@pytest.mark.parametrize("slots", [1024, 2048])
def test_the_keys_and_values_of_a_reused_prefix_have_the_same_bits(slots):
    """A cache with another prompt's first two chunks, and the rest computed, is that of the prompt alone."""
    layout = Layout.of(model().config, jnp.dtype(jnp.float32), 2048, SamplingFeatures.FILTERED, [])
    engine = Engine(model(), layout, 2)
    random = np.random.default_rng(0)
    one, two = (random.integers(0, small_models.VOCAB, 800).tolist() for _ in range(2))
    two = [*one[: 2 * BLOCK + 50], *two[:200]]
    both = [Request(ids, SETTINGS[0], 4) for ids in (one, two)]

    def filled(request, **options):
        prefill = engine.prefill([request], **options)
        while not prefill.finished:
            prefill.advance()
        return prefill, [prefill.part(number) for number in range(3)]

    _, parts = filled(both[0], capacity=1024)
    _, expected = filled(both[1], capacity=slots)
    reusing, found = filled(both[1], capacity=slots, prefix=Prefix(one, jax.tree.map(np.asarray, parts)))
    assert reusing.reused == 2 * BLOCK
    for number, pair in enumerate(zip(expected, found, strict=True)):
        rows = len(two) - 1 - number * BLOCK
        for ours, theirs in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_array_equal(ours[:, :, :, :rows], theirs[:, :, :, :rows])
    engine.close()


@pytest.mark.parametrize("slots", [512, 300])
def test_the_caller_chooses_the_cache_of_a_prefill(slots):
    """A server compiles a few sizes ahead; one that is too small for the prompt is a mistake of the caller."""
    engine = new_engine()
    if slots < 512:
        with pytest.raises(AssertionError, match="300 slots are too few for 512"):
            engine.prefill([request(1)], capacity=slots)
        return
    house = House(engine=engine, plan="fused")
    prefill = engine.prefill([request(3)], capacity=slots)
    assert prefill.capacity == slots
    result = engine.insert(prefill, [1]).result()
    house.tenants[1] = (3, result.records[0, : result.counts[0], 0].tolist())
    house.finish()
    assert_same(house.ended[3], alone(3).tokens)


def test_plans_that_share_a_drafter_change_without_another_catch_up():
    """The drafts of one are those of the other: after prefill they are brought up to date once."""
    fused = named_plans()["fused"]
    other = replace(fused, plan=replace(fused.plan, tree=replace(fused.plan.tree, node_budget=3)))
    engine = new_engine()
    engine.insert(engine.prefill([request(0)]), [0]).result()
    assert engine.prepare(fused) > 0
    tokens = alone(0).tokens[:1]
    for turn in range(40):
        named = (fused, other)[turn % 2]
        assert turn == 0 or engine.prepare(named) == 0
        result = engine.step(named, 1).result()
        tokens += result.records[0, : result.counts[0], 0].tolist()
    assert_same(tokens, alone(0).tokens[: len(tokens)])
    assert len(tokens) >= 40


def test_a_table_that_lacks_little_of_the_text_is_not_waited_for():
    """Plain decoding and drafts by turns: the first chunk of drafts waits for its table, later ones begin with it."""
    plans = named_plans()["fused"], named_plans()["plain"]
    engine = new_engine()
    engine.insert(engine.prefill([request(0)]), [0]).result()
    tokens = alone(0).tokens[:1]
    for turn in range(20):
        seconds = engine.prepare(plans[turn % 2])
        assert (seconds > 0) is (turn == 0)
        result = engine.step(plans[turn % 2], 2).result()
        tokens += result.records[0, : result.counts[0], 0].tolist()
    assert_same(tokens, alone(0).tokens[: len(tokens)])


def test_a_row_with_nan_ends_alone():
    """A prompt that reaches a poisoned embedding ends with NOT_A_NUMBER; its neighbours' texts are as without it."""
    used = {*request(0).prompt_ids, *alone(0).tokens}
    poison = next(token for token in range(small_models.VOCAB) if token not in used)
    house = House(engine=new_engine(of=small_models.poisoned(model(), poison)), plan="fused")
    house.arrive(0)
    house.advance()
    bad = Request((3, poison, 7), SamplingConfig(temperature=0.0), 20)
    result = house.engine.insert(house.engine.prefill([bad]), [0]).result()
    assert (result.counts[0], result.finish[0]) == (0, Finish.NOT_A_NUMBER)
    house.finish()
    assert_same(house.ended[0], alone(0).tokens)


def test_settings_of_other_rows_than_the_prefill_s_are_one_clear_error():
    engine = new_engine()
    engine._settings = lambda requests: Engine._settings(engine, [*requests, *requests])
    pending = engine.insert(engine.prefill([request(0)]))
    error = r"^settings\.keys has 2 for batch in shape \[2, 2\], and state\.tokens has 1$"
    with pytest.raises(ValueError, match=error):
        pending.result()
    assert engine.state is None
    engine.close()


def test_a_request_that_does_not_fit_is_refused_before_anything_is_computed():
    """At the last slot that fits, a row decodes to its end; one more token is an error, not overwritten K/V."""
    engine = new_engine()
    room = CAPACITY - engine.layout.scratch - 1
    prompt = request(1).prompt_ids
    fits = Request(prompt, SETTINGS[0], room - len(prompt))
    with pytest.raises(UserError, match=f"needs {CAPACITY + 1} slots, and a row of the cache has {CAPACITY}"):
        engine.prefill([replace(fits, max_new_tokens=fits.max_new_tokens + 1)])
    house = House(engine=engine, plan="fused")
    result = engine.insert(engine.prefill([fits]), [1]).result()
    house.tenants[1] = ("full", result.records[0, : result.counts[0], 0].tolist())
    house.finish()
    (expected,) = decode_requests(model(), [fits], SPECULATIONS["plain"])
    assert_same(house.ended["full"], expected.tokens)


def test_sampling_that_the_steps_do_not_contain_is_refused():
    layout = replace(new_engine().layout, features=SamplingFeatures.SAMPLED)
    Engine(model(), layout, 1).prefill([request(2)])
    with pytest.raises(ValueError, match="needs FILTERED sampling and the engine's steps contain SAMPLED"):
        Engine(model(), layout, 1).prefill([request(1)])
