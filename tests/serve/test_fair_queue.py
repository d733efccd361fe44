"""The order of the queue: owners get equal shares of tokens for requests of any size."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.fair_queue import FairQueue
from tokenswift_jax.serve.run import Run

GREEDY = SamplingConfig(temperature=0.0)


def run(owner, tokens):
    return Run(Request((0,), GREEDY, tokens - 1), owner)


def serve(queue):
    """Admits the first run and computes all its tokens; returns it."""
    first = queue.first(lambda _: True)
    queue.charge(first.owner, first.length)
    queue.left(first.owner)
    return first


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.tuples(st.sampled_from("ab"), st.integers(2, 400)), min_size=4, max_size=40),
)
def test_while_both_wait_their_shares_differ_by_less_than_one_run(sizes):
    queue, largest = FairQueue(), max(size for _, size in sizes)
    for owner, size in sizes:
        queue.push(run(owner, size))
    waiting = {owner: sum(one == owner for one, _ in sizes) for owner in "ab"}
    while all(waiting.values()):
        waiting[serve(queue).owner] -= 1
        assert abs(queue.served("a") - queue.served("b")) <= largest


def test_runs_of_one_owner_keep_their_order_and_the_order_foretells_admission():
    queue = FairQueue()
    runs = [run("ab"[number % 3 == 0], 10 + 7 * number) for number in range(9)]
    for each in runs:
        queue.push(each)
    foretold = list(queue.order())
    assert [serve(queue) for _ in runs] == foretold
    for owner in "ab":
        own = [each for each in runs if each.owner == owner]
        assert [each for each in foretold if each.owner == owner] == own
    assert not queue.present


def test_an_owner_who_was_away_has_no_credit():
    queue = FairQueue()
    queue.push(run("a", 1000))
    serve(queue)
    queue.push(run("a", 10))
    queue.push(run("b", 10))
    assert queue.served("b") == queue.served("a") == 1000


def test_a_run_that_leaves_is_not_admitted():
    queue = FairQueue()
    gone, stays = run("a", 10), run("a", 20)
    queue.push(gone)
    queue.push(stays)
    assert queue.remove(gone)
    assert not queue.remove(gone)
    assert queue.first(lambda each: each.length > 20) is None
    assert queue.first(lambda _: True) is stays
    assert len(queue) == 0
    assert queue.present == {"a"}


def test_owners_who_left_are_forgotten():
    """A server that accepts any key would otherwise keep a count of every key it has seen."""
    queue = FairQueue()
    for number in range(3000):
        queue.push(run(str(number), 2))
        serve(queue)
    assert len(queue._served) < 1100
    assert len(queue._admitted) < 1100
