"""The policy that processes share: its messages, through a store in place of the coordination service."""

import itertools
from typing import Any

import pytest

from tokenswift_jax.engine.policy import FixedPlan
from tokenswift_jax.processes import agreement
from tokenswift_jax.processes.policy import agreed_policy

PLANS: Any = ["plain", "fused"]


class Store(dict):
    """The methods of the service that the processes use."""

    key_value_set = key_value_set_bytes = dict.__setitem__
    blocking_key_value_get = blocking_key_value_get_bytes = lambda self, name, wait: self[name]

    def key_value_delete(self, folder):
        for name in [name for name in self if name.startswith(folder)]:
            del self[name]


@pytest.fixture
def process(monkeypatch):
    """Makes the calls that follow those of one process of two; returns the store."""
    store = Store()
    texts = itertools.count(), itertools.count()
    monkeypatch.setattr(agreement, "several", lambda: True)
    monkeypatch.setattr(agreement, "_store", lambda: store)

    def become(number):
        monkeypatch.setattr(agreement, "leads", lambda: number == 0)
        monkeypatch.setattr(agreement, "_TEXTS", texts[number])
        return store

    return become


def test_the_end_of_a_text_does_not_end_the_next_one(process):
    """All processes see a text's last token by themselves, and process 0's policy also tells them."""
    kept = []
    for text in range(6):
        process(0)
        leader = agreed_policy(lambda chosen=PLANS[text % 2]: FixedPlan(chosen), PLANS)
        leader.next_plan()
        leader.close()
        store = process(1)
        follower = agreed_policy(lambda: pytest.fail("process 0 alone makes a policy"), PLANS)
        assert follower.next_plan() == (PLANS[text % 2], None)
        follower.close()
        kept.append(len(store))
    assert kept[2:] == 4 * [kept[1]], "the messages of earlier texts stay in the store"


def test_the_end_of_a_text_reaches_a_process_that_goes_on(process):
    process(0)
    leader = agreed_policy(lambda: FixedPlan(PLANS[0]), PLANS)
    process(1)
    follower = agreed_policy(lambda: pytest.fail("process 0 alone makes a policy"), PLANS)
    leader.close()
    with pytest.raises(KeyboardInterrupt):
        follower.next_plan()
