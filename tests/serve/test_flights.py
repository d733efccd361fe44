"""Results come back as the device finishes them, and texts near their end go first."""

import threading

import pytest

pytest.importorskip("starlette")
from tokenswift_jax.request import Request
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.flights import Flights
from tokenswift_jax.serve.run import Run
from tokenswift_jax.serve.tenancy import Flight, Tenancy

LONG, SHORT = 2000, 16


class Result:
    """A result that comes when it is told to."""

    def __init__(self):
        self.come = threading.Event()

    def wait(self):
        assert self.come.wait(60)


@pytest.fixture
def flights():
    made = Flights(threading.Condition())
    yield made
    for flight in made.drain():
        flight.pending.come.set()


def sent(flights, pool, most=LONG, tenancy=None):
    """A flight of a pool, for a text of so many tokens."""
    tenancy = tenancy or Tenancy(Run(Request((1,), SamplingConfig(), most)), 0)
    flight = Flight(pool, {0: tenancy}, Result())
    flights.add(flight)
    return flight


def landed(flights, flight):
    flight.pending.come.set()
    assert flights.next(lambda: False) is flight


def pools(count):
    """Pools by their identity alone."""
    return [type("Pool", (), {})() for _ in range(count)]


def test_results_come_as_they_are_finished(flights):
    one, other = pools(2)
    first, second, third = sent(flights, one), sent(flights, other), sent(flights, one)
    assert (flights.of(one), flights.of(other), len(flights)) == (2, 1, 3)
    landed(flights, second)
    assert (flights.of(one), flights.of(other)) == (2, 0)
    third.pending.come.set()  # those of one pool in order
    landed(flights, first)
    assert flights.next(lambda: False) is third
    assert not len(flights)


def test_a_call_ends_the_wait(flights):
    flight = sent(flights, *pools(1))
    assert flights.next(lambda: True) is None
    assert flights.of(flight.pool) == 1
    landed(flights, flight)


def test_a_pool_lets_one_text_near_its_end_go_first(flights):
    patient, other = pools(2)
    assert not flights.gives_way(patient)
    landed(flights, sent(flights, other))
    flight = sent(flights, other)
    assert not flights.gives_way(patient), "both go on for a while"
    landed(flights, flight)
    flight = sent(flights, other, SHORT)
    assert not flights.gives_way(other)
    assert flights.gives_way(patient)
    text = flight.rows[0]
    landed(flights, flight)
    flight = sent(flights, other, tenancy=text)  # its next chunk
    assert flights.gives_way(patient)
    text.active = False  # it has ended
    flight = sent(flights, other, SHORT)
    assert not flights.gives_way(patient), "it has waited for a text"
    sent(flights, patient)
    assert flights.gives_way(patient)
