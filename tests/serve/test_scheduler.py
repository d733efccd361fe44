"""Every run's tokens are those of its request alone, however runs arrive, leave, pause and come back."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from decoded import assert_same, decode_requests
from houses import COUNT, LONG, SCHEDULES, SHORT, SOME_MODES, Guests, alone, model, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speculations import SPECULATIONS

from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import BLOCK
from tokenswift_jax.request import Request
from tokenswift_jax.serve import pool_choice
from tokenswift_jax.serve.busy import BusyError
from tokenswift_jax.serve.observer import Observer
from tokenswift_jax.serve.pool import Pool, PoolSize
from tokenswift_jax.serve.prefix_store import PrefixStore
from tokenswift_jax.serve.run import Run, RunState
from tokenswift_jax.serve.scheduler import Scheduler
from tokenswift_jax.serve.tenancy import Tenancy

actions = st.one_of(
    st.tuples(st.just("arrive"), st.integers(0, COUNT - 1)),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("cancel"), st.integers(0, COUNT - 1)),
    st.tuples(st.just("pause"), st.integers(0, COUNT - 1)),
    st.tuples(st.just("resume"), st.integers(0, COUNT - 1)),
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", SOME_MODES)
@settings(max_examples=SCHEDULES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schedule=st.lists(actions, min_size=15, max_size=50))
def test_any_schedule_gives_every_run_the_tokens_it_has_alone(mode, schedule):
    guests = Guests(mode)
    for action, value in schedule:
        if action == "turn":
            for _ in range(value):
                guests.scheduler.turn()
        elif action == "arrive" and value not in guests.runs:
            guests.arrive(value, owner="ab"[value % 2], logprobs=value % 3 == 0)
        elif value in guests.runs:
            run = guests.runs[value]
            if action == "cancel":
                guests.scheduler.cancel(run)
            elif action == "pause":
                guests.scheduler.pause(run)
            elif action == "resume" and run.state is RunState.PAUSED:
                guests.scheduler.submit(run)
    guests.finish()
    guests.emptied()
    for index, run in guests.runs.items():
        heard = guests.heard[run]
        assert_same([token for update in heard for token in update.log.token_ids.tolist()], run.tokens)
        assert [update.finish for update in heard if update.finish] == [run.finish]
        if run.state is RunState.FINISHED:
            assert_same(run.tokens, alone(index).tokens)
            assert run.finish == alone(index).finish
        else:
            assert run.state is RunState.CANCELLED
            assert_same(run.tokens, alone(index).tokens[: len(run.tokens)])
        if run.logprobs and run.tokens:
            assert all(update.log.logprobs is not None for update in heard if len(update.log))


def test_a_run_beside_others_has_the_log_probabilities_it_has_alone():
    """Its neighbours come without log-probabilities, and with other settings."""
    alone_here, beside = Guests("fused"), Guests("fused")
    alone_here.arrive(3, logprobs=True)
    alone_here.finish()
    for index in (0, 1, 2, 3, 5):
        beside.arrive(index, logprobs=index == 3)
    beside.finish()
    first, second = alone_here.runs[3].log.logprobs, beside.runs[3].log.logprobs
    np.testing.assert_array_equal(first.top_ids[:, :3], second.top_ids[:, :3])
    np.testing.assert_allclose(first.values, second.values, atol=1e-5)


def test_a_long_prompt_and_texts_take_turns():
    """While a text decodes, a prompt advances one chunk for each chunk of the text."""
    guests = Guests("fused")
    text = guests.arrive(0)
    while text.state is not RunState.RUNNING:
        guests.scheduler.turn()
    prompt = guests.arrive(1)
    before = len(text.tokens)
    turns = 0
    while prompt.first_token is None:
        guests.scheduler.turn()
        turns += 1
    assert turns >= 2
    assert len(text.tokens) > before
    guests.finish()
    assert_same(prompt.tokens, alone(1).tokens)


def test_a_short_request_passes_a_queue_of_long_ones():
    """The long pool is full and two more wait for it; a short request takes the short pool's slot at once."""
    guests = Guests("fused")
    for index in (1, 6, 8):
        guests.arrive(index)
    guests.scheduler.turn()
    short = guests.arrive(4)
    guests.scheduler.turn()
    guests.scheduler.turn()
    assert short.state in (RunState.RUNNING, RunState.FINISHED)
    assert guests.runs[8].state is RunState.QUEUED
    assert guests.scheduler.position(guests.runs[8]) == 0
    guests.finish()
    guests.emptied()


def test_short_requests_borrow_idle_slots_of_the_long_pool():
    guests = Guests("fused")
    for index in (0, 4, 7, 11):
        guests.arrive(index)
    for _ in range(4):
        guests.scheduler.turn()
    assert guests.scheduler.counts["waiting"] == 0
    guests.finish()


@pytest.mark.parametrize(
    ("lengths", "placed"),
    [
        ([5], [(1, 400)]),
        ([5, 5], [(4, 400), (4, 400)]),
        ([5] * 5, [*[(4, 400)] * 4, (2, 100)]),
        ([5] * 8, [*[(4, 400)] * 4, (2, 100), (2, 100), (1, 400)]),
        ([5] * 7 + [300], [*[(4, 400)] * 4, (2, 100), (2, 100), (1, 400)]),
        ([300], [(1, 400)]),
        ([300] * 6, [*[(4, 400)] * 4, (1, 400)]),
    ],
)
def test_runs_enter_few_and_wide_pools_and_leave_a_slot_for_longer_ones(monkeypatch, lengths, placed):
    """Pools without an engine: one slot and four for texts of 400 positions, two for texts of 100; nobody waits."""
    monkeypatch.setattr(pool_choice, "_PATIENT", 0)

    class Places:
        inhabitants = Pool.inhabitants

        def __init__(self, slots, length):
            self.size, self.tenants, self.coming, self.begun = PoolSize(slots, length), {}, [], []

        @property
        def vacant(self):
            return range(self.size.slots - len(self.begun))

        def fits(self, request):
            return request.max_new_tokens < self.size.length

        def may_begin(self, run):
            return True

        def begin(self, run):
            self.begun.append(run)
            self.coming.append((run, None))

    sizes = (1, 400), (4, 400), (2, 100)
    scheduler = Scheduler([Places(*size) for size in sizes], lambda run, update: None)
    runs = [Run(Request((1,), request(0).sampling, length)) for length in lengths]
    for run in runs:
        scheduler.queue.push(run)
    for pool in scheduler.pools * 2:  # two turns
        scheduler._admit(pool)
    found = [(pool.size.slots, pool.size.length) for pool in scheduler.pools for _ in pool.begun]
    assert sorted(found) == sorted(placed)
    assert len(scheduler.queue) == len(lengths) - len(placed)


class Slots:
    """A pool without an engine; `left` has the tokens to come of the texts in its slots."""

    inhabitants = Pool.inhabitants

    def __init__(self, slots, left=()):
        self.size, self.coming, self.begun = PoolSize(slots, 4096), [], []
        self.tenants = {slot: Tenancy(Run(Request((1,), request(0).sampling, most)), slot) for slot, most in left}
        self.vacant = list(range(slots - len(self.tenants)))

    def fits(self, request):
        return True

    def may_begin(self, run):
        return bool(self.vacant)

    def begin(self, run):
        self.begun.append(run)
        self.vacant.pop()


@pytest.mark.parametrize(
    ("length", "waits"), [(16, False), (99, False), (100, True), (1500, True), (pool_choice._PATIENT, False)]
)
def test_a_short_text_waits_for_a_wide_pool_that_has_a_slot_soon(length, waits):
    """Pools without an engine: four texts fill the wide one, the first to end has 100 tokens left; one slot is idle."""

    narrow, wide = Slots(1), Slots(4, list(enumerate((2000, 100, 900, 3000))))
    scheduler = Scheduler([narrow, wide], lambda run, update: None)
    scheduler._places.update({tenancy.run: wide for tenancy in wide.tenants.values()})
    scheduler.queue.push(Run(Request((1,), request(0).sampling, length)))
    for pool in scheduler.pools:
        scheduler._admit(pool)
    assert (len(narrow.begun), len(scheduler.queue)) == ((0, 1) if waits else (1, 0))


@pytest.mark.parametrize(
    ("present", "most", "chosen"),
    [(2000, 16, "narrow"), (16, 2000, "narrow"), (16, 16, "wide"), (2000, 2000, "wide")],
)
def test_a_text_of_a_few_tokens_and_one_that_goes_on_enter_different_pools(present, most, chosen):
    """Pools without an engine; the wide one has a text of `present` tokens."""

    pools = {"narrow": Slots(1), "wide": Slots(4, [(0, present)])}
    scheduler = Scheduler(list(pools.values()), lambda run, update: None)
    scheduler._places.update({tenancy.run: pools["wide"] for tenancy in pools["wide"].tenants.values()})
    scheduler.queue.push(Run(Request((1,), request(0).sampling, most)))
    for pool in scheduler.pools:
        scheduler._admit(pool)
    assert [name for name, pool in pools.items() if pool.begun] == [chosen]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("wide", [3, 8])
def test_no_run_goes_back_and_forth_between_pools(wide, waits):
    """Pools without an engine. A long text has the slot of one; short ones take the rest, and longer ones may wait."""

    class Tenancies:
        inhabitants = Pool.inhabitants

        def __init__(self, slots, length):
            self.size, self.tenants, self.coming = PoolSize(slots, length), {}, []

        @property
        def vacant(self):
            return [slot for slot in range(self.size.slots) if slot not in self.tenants]

        def fits(self, request):
            return request.max_new_tokens < self.size.length

        def may_begin(self, run):
            return bool(self.vacant) and not (waits and run.request.max_new_tokens > 3000)

        def begin(self, run):
            begun.append(run)
            self.tenants[self.vacant[0]] = Tenancy(run, self.vacant[0])

        def leave(self, run):
            self.tenants = {slot: each for slot, each in self.tenants.items() if each.run is not run}

    begun = []
    scheduler = Scheduler([Tenancies(*size) for size in ((1, 4000), (wide, 4000), (2, 1000))], lambda *_: None)
    arrivals = [(0, 2000, 1500), *[(3, 5, 5)] * (wide + 1), *[(6, 3500, 5)] * 2, (9, 5, 5)]
    for turn in range(40):
        for at, length, prompt in arrivals:
            if at == turn:
                scheduler.queue.push(Run(Request((1,) * prompt, request(0).sampling, length)))
        for pool in scheduler.pools:
            scheduler._gather(pool)
            scheduler._admit(pool)
        if turn == 20:
            settled = len(begun)
    assert len(begun) == settled
    assert max(map(begun.count, begun)) <= 2


def test_a_run_that_moves_counts_its_own_keys_and_values_as_no_earlier_texts():
    """Pools without an engine. After the move the store has the prompt, which the run computed in the first pool."""

    class Tenancies:
        inhabitants = Pool.inhabitants

        def __init__(self, slots, cached):
            self.size, self.tenants, self.coming, self.cached = PoolSize(slots, 4000), {}, [], cached

        @property
        def vacant(self):
            return [slot for slot in range(self.size.slots) if slot not in self.tenants]

        def fits(self, request):
            return True

        def may_begin(self, run):
            return bool(self.vacant)

        def begin(self, run):
            self.tenants[self.vacant[0]] = Tenancy(run, self.vacant[0])
            return self.cached

        def leave(self, run):
            self.tenants = {slot: each for slot, each in self.tenants.items() if each.run is not run}

    class Counts(Observer):
        def entering(self, run):
            entered.append(run)

    entered, pools = [], [Tenancies(1, 0), Tenancies(3, BLOCK)]
    scheduler = Scheduler(pools, lambda *_: None, observer=Counts())  # pyright: ignore[reportArgumentType]
    runs = [Run(Request((1,) * 300, request(0).sampling, 500)) for _ in range(2)]
    for run in runs:
        scheduler.queue.push(run)
        scheduler._admit(pools[0])
        scheduler._admit(pools[1])
    assert scheduler._places[runs[0]] is pools[0]
    scheduler._gather(pools[0])
    assert scheduler._places[runs[0]] is pools[1]
    assert [run.cached for run in runs] == [0, BLOCK]
    assert entered == runs


def test_a_run_that_began_alone_joins_the_others(monkeypatch):
    """It leaves a pool of one slot for a wider one, and has the tokens that it has alone; a long text stays."""
    for most, expected in ((1024, [(2, 2)]), (3, [(1, 1), (2, 1)])):
        monkeypatch.setattr(pool_choice, "_GATHERED", most)
        guests = Guests("fused", sizes=(PoolSize(1, SHORT.length), SHORT))
        first = guests.arrive(0, max_new_tokens=SHORT.length - 2)
        while len(first.tokens) < 2:
            guests.scheduler.turn()
        assert [pool.size.slots for pool in guests.scheduler.pools if pool.tenants] == [1]
        guests.arrive(4)
        seen = []
        for _ in range(4):
            guests.scheduler.turn()
            found = [(pool.size.slots, len(pool.tenants) + len(pool.coming)) for pool in guests.scheduler.pools]
            seen.append([each for each in found if each[1]])
        assert expected in seen
        guests.finish()
        guests.emptied()
        for index in (0, 4):
            assert_same(guests.runs[index].tokens[: len(alone(index).tokens)], alone(index).tokens)


def test_the_owner_with_fewer_tokens_comes_first():
    """One owner fills the queue; a request of another passes all that wait, and from then on they alternate."""
    guests = Guests("fused")
    greedy = [guests.arrive(index, owner="greedy") for index in (1, 6, 8, 9)]
    guests.scheduler.turn()
    modest = [guests.arrive(index, owner="modest") for index in (3, 2)]
    waiting = list(guests.scheduler.queue.order())
    assert waiting[0] in modest
    assert {run.owner for run in waiting[:2]} != {"greedy"}
    guests.finish()
    assert all(run.state is RunState.FINISHED for run in greedy + modest)
    guests.emptied()


def test_a_full_queue_refuses_and_says_when_to_come_back():
    guests = Guests("fused", max_queue=2)
    guests.arrive(0)
    guests.arrive(1)
    with pytest.raises(BusyError, match="2 requests wait") as refused:
        guests.arrive(2)
    assert 1 <= refused.value.retry_after <= 120
    del guests.runs[2]
    guests.finish()
    guests.emptied()


def test_a_request_longer_than_every_slot_is_refused():
    guests = Guests("fused")
    with pytest.raises(UserError, match=rf"is above {LONG.length}, the longest text"):
        guests.arrive(1, max_new_tokens=LONG.length - len(request(1).prompt_ids) + 1)
    guests.runs.clear()
    guests.arrive(1, max_new_tokens=LONG.length - len(request(1).prompt_ids))
    guests.finish()
    shared = len(alone(1).tokens)
    assert_same(guests.runs[1].tokens[:shared], alone(1).tokens)


def test_a_run_paused_at_every_turn_reaches_the_same_tokens():
    guests = Guests("fused")
    run = guests.arrive(2)
    for _ in itertools.count():
        guests.scheduler.turn()
        guests.scheduler.pause(run)
        guests.scheduler.turn()
        if run.state.ended:
            break
        assert run.state is RunState.PAUSED
        guests.scheduler.submit(run)
        before = len(run.tokens)
        while len(run.tokens) == before and not run.state.ended:
            guests.scheduler.turn()
    assert_same(run.tokens, alone(2).tokens)


@pytest.mark.parametrize("indices", [(0,), (0, 1)])
def test_a_chunk_is_timed_if_no_other_pool_ran_meanwhile(monkeypatch, indices):
    guests, results = Guests("fused"), []
    for each in guests.scheduler.pools:
        monkeypatch.setattr(each, "learn", lambda flight, result, seconds: results.append((flight.pool, seconds)))
    for index in indices:
        guests.arrive(index)
    while not all(run.tokens for run in guests.runs.values()):
        guests.scheduler.turn()
    del results[:-1]
    guests.finish()
    turns = [before is not after for (before, _), (after, _) in itertools.pairwise(results)]
    assert any(turns) == (len(indices) > 1)
    assert [seconds is None for _, seconds in results[1:]] == turns
    for index, run in guests.runs.items():
        assert_same(run.tokens, alone(index).tokens)


def test_work_for_the_device_runs_between_turns():
    guests = Guests("fused")
    future = guests.scheduler.call(lambda: 41 + 1)
    failed = guests.scheduler.call(lambda: model().missing)
    guests.scheduler.turn()
    assert future.result(0) == 42
    with pytest.raises(AttributeError):
        failed.result(0)


def test_a_fault_of_the_device_ends_every_run_with_an_error(monkeypatch):
    """Nobody waits for ever: what runs and what waits fails, and the server says that it takes no more."""
    guests = Guests("fused")
    runs = [guests.arrive(index) for index in (0, 2, 4, 7, 11)]
    for pool in guests.scheduler.pools:
        monkeypatch.setattr(pool, "warm_up", lambda given_up: None)
        monkeypatch.setattr(pool.engine, "close", lambda: None)
        monkeypatch.setattr(pool, "step", lambda iterations: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guests.scheduler._main()
    assert {run.state for run in runs} == {RunState.FAILED}
    assert all(guests.heard[run][-1].finish == "error" for run in runs)
    assert guests.scheduler.error == "ZeroDivisionError: division by zero"
    with pytest.raises(BusyError, match="going down"):
        guests.arrive(1)
    for pool in guests.scheduler.pools:
        for run in runs:
            pool.leave(run)


@pytest.fixture
def store():
    made = PrefixStore(2**30, 1)
    yield made
    made.close()


def visit(mode, store, *arrivals):
    """Runs of requests one after the other, in pools with a store; a request is an index and changes."""
    guests, runs = Guests(mode), []
    for pool in guests.scheduler.pools:
        pool.prefixes = store
    try:
        for index, owner, changes in arrivals:
            runs.append(guests.arrive(index, owner, **changes))
            guests.finish()
            store.settle()
        guests.emptied()
    finally:
        for pool in guests.scheduler.pools:
            pool.prefixes = None
    return runs


@pytest.mark.parametrize("mode", SOME_MODES)
def test_a_run_that_reuses_a_prompt_has_the_tokens_it_has_alone(mode, store):
    """Its own prompt again, and one that differs after 280 tokens; another key finds nothing."""
    changed = {"prompt_ids": (*request(6).prompt_ids[:280], 3, 5, 8)}
    first, again, differing, stranger = visit(
        mode, store, (6, "alice", {}), (6, "alice", {}), (6, "alice", changed), (6, "bob", {})
    )
    assert [run.cached for run in (first, again, differing, stranger)] == [0, BLOCK, BLOCK, 0]
    for run in (first, again, stranger):
        assert_same(run.tokens, alone(6).tokens)
    (expected,) = decode_requests(model(), [replace(request(6), **changed)], SPECULATIONS["plain"])
    assert_same(differing.tokens, expected.tokens)


def test_poisoned_neighbours_never_show(store):
    """All K/V in the store but those of one's own tokens are NaN: no run gets any of them."""
    visit("fused", store, (1, "alice", {}), (6, "bob", {}), (8, "bob", {}))
    assert len(store._entries) == 3
    own = request(6).prompt_ids[:BLOCK]
    for entry in store._entries.values():
        if entry.key[3] != np.asarray(own, np.int32).tobytes():
            entry.part = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), entry.part)
    (run,) = visit("fused", store, (6, "bob", {}))
    assert (run.cached, run.finish) == (BLOCK, alone(6).finish)
    assert_same(run.tokens, alone(6).tokens)
    (stranger,) = visit("fused", store, (1, "bob", {}))
    assert stranger.cached == 0
    assert_same(stranger.tokens, alone(1).tokens)
    (poisoned,) = visit("fused", store, (1, "alice", {}))  # the poison works
    assert poisoned.state is RunState.FAILED


@pytest.mark.parametrize("mode", SOME_MODES)
def test_a_paused_run_and_a_branch_take_over_the_texts_own_parts(mode, store):
    """A run of 40 + 350 tokens pauses after 230; it and a branch at token 225 begin with one part of 256."""
    most, family = 350, "run_family"
    (whole,) = decode_requests(model(), [replace(request(2), max_new_tokens=most)], SPECULATIONS["plain"])
    guests = Guests(mode)
    for pool in guests.scheduler.pools:
        pool.prefixes = store
    try:
        run = guests.arrive(2, max_new_tokens=most)
        run.family = family
        while len(run.tokens) < 230 and not run.state.ended:
            guests.scheduler.turn()
        guests.scheduler.pause(run)
        guests.scheduler.turn()
        assert run.state is RunState.PAUSED
        store.settle()
        assert run.cached == 0
        guests.finish()
        assert run.cached == len(request(2).prompt_ids)
        assert_same(run.tokens, whole.tokens)
        branch = Run(run.request, family=family)
        branch.add(run.log.cut(225))
        guests.heard[branch] = []
        guests.runs[99] = branch
        guests.scheduler.submit(branch)
        guests.finish()
        assert branch.cached == len(request(2).prompt_ids)
        assert_same(branch.tokens, whole.tokens)
    finally:
        for pool in guests.scheduler.pools:
            pool.prefixes = None
