"""Measurements of the host while it drives a run."""

import time

import numpy as np
import tiny
from decoded import start

from tokenswift_jax import SamplingConfig, SpeculationConfig
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.policy import FixedPlan
from tokenswift_jax.step.loop import catch_up

DELAY = 0.3  # seconds


def test_catching_up_counts_as_decoding_apart_from_the_chunk_s_own_time(monkeypatch):
    run_it, observe, observed = CompileCache.run, FixedPlan.observe, []

    def slow_catch_up(self, function, *arguments, **named):
        if getattr(function.__wrapped__, "func", None) is catch_up:
            time.sleep(DELAY)
        return run_it(self, function, *arguments, **named)

    def noted(self, named, tokens, iterations, seconds, catch_up):
        observed.append((seconds, catch_up))
        observe(self, named, tokens, iterations, seconds, catch_up)

    monkeypatch.setattr(CompileCache, "run", slow_catch_up)
    monkeypatch.setattr(FixedPlan, "observe", noted)
    model = tiny.tiny_model(tiny.tiny_config(num_hidden_layers=1))
    speculation = SpeculationConfig(mode="ngram", node_budget=3)
    run = start(model, [[1, 2, 3]], SamplingConfig(temperature=0.0), speculation, max_new_tokens=80)
    prefilled, *steps = [step.rows[0].log.seconds.sum() for step in run]
    assert prefilled == 0
    assert len(steps) == len(observed) >= 2
    assert observed[0][1] >= DELAY
    assert [catch_up for _, catch_up in observed[1:]] == [0.0] * (len(steps) - 1), "the plan never changed"
    np.testing.assert_allclose(steps, [seconds + catch_up for seconds, catch_up in observed])


def test_closing_a_run_lets_go_of_the_state_of_the_chunk_under_way():
    model = tiny.tiny_model(tiny.tiny_config(num_hidden_layers=1))
    plain = SpeculationConfig(mode="autoregressive")
    run = start(model, [[1, 2, 3]], SamplingConfig(temperature=0.0), plain, max_new_tokens=200)
    steps = iter(run)
    next(steps)
    next(steps)
    assert run.state is not None
    run.close()
    assert run.state is None
