"""A row of a batch has a schedule trace of its own: plans with the first token of that row from each."""

import small_models

from tokenswift_jax.engine import session
from tokenswift_jax.engine.policy import FixedPlan
from tokenswift_jax.engine.session import Session
from tokenswift_jax.request import batch_of
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig

GREEDY = SamplingConfig(temperature=0.0)


class Alternating(FixedPlan):
    """Plain decoding and n-grams, a chunk each."""

    def __init__(self, plain, plans, *more, **knowledge):
        super().__init__(plain)
        self._order, self._sent = (plain, plans[0]), 0

    busy = False
    waiting = True  # so that the session changes the plan at every chunk

    def next_plan(self):
        return self._order[self._sent % 2], 6

    def observe(self, *chunk):
        self._sent += 1


def test_rows_that_emit_different_numbers_of_tokens(monkeypatch):
    monkeypatch.setattr(session, "Planner", Alternating)
    model = small_models.random_model(48, layers=1, heads=0)
    (greedy,) = batch_of([[1, 2, 3] * 9], GREEDY, max_new_tokens=70)
    (sampled,) = batch_of([[4, 9, 30, 8, 2]], SamplingConfig(seed=3), max_new_tokens=40)
    requests = [greedy, sampled]
    running = Session(model, requests, SpeculationConfig(node_budget=3, ngram_slots=4))
    logs = [[len(row.log) for row in step.rows] for step in running]
    for row, trace in enumerate(running.schedule_traces):
        written = [counts[row] for counts in logs]
        assert sum(written) == requests[row].max_new_tokens
        chunks = [at for at in range(1, len(written)) if written[at]]
        assert [entry["from_token"] for entry in trace] == [sum(written[:at]) for at in chunks]
        modes = [entry["mode"] for entry in trace]
        assert modes == [("autoregressive", "ngram")[at % 2] for at in range(len(trace))]
    assert running.schedule_traces[0] != running.schedule_traces[1]


def test_a_resumed_row_begins_at_its_own_token():
    model = small_models.random_model(48, layers=1, heads=0)
    requests = batch_of([[1, 2, 3], [4, 5, 6]], GREEDY, max_new_tokens=8)
    plain = SpeculationConfig(mode="autoregressive")
    running = Session(model, requests, plain, emitted=[[], [5, 6, 7, 8]])
    list(running)
    assert [[entry["from_token"] for entry in trace] for trace in running.schedule_traces] == [[1], [4]]
