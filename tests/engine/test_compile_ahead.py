"""Programs compiled beside decoding: the text is the same, errors surface, and no run waits for a program in vain."""

import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest
import small_models
from decoded import PLAIN, assert_same, decode, start

from tokenswift_jax.engine import compile_ahead as module
from tokenswift_jax.engine import text_knowledge
from tokenswift_jax.engine.compile_ahead import CompileAhead
from tokenswift_jax.engine.planner import Planner
from tokenswift_jax.engine.step_costs import StepCosts
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.threads import COMPILING

GREEDY = SamplingConfig(temperature=0.0)
# Draft heads foresee this text well; the vocabulary is no other test's, so that no program is there before.
MODEL = small_models.successor_model(vocab=31, layers=1, heads=2, context=0.1)
AUTO = SpeculationConfig(mode="auto", tree=(1, 1, 1), node_budget=2, ngram_k=0, draft_cache=64, draft_sinks=4)
TOKENS = 400


@pytest.fixture
def wanted(monkeypatch):
    """Compilation that costs nothing, and a core that is free: every plan that could gain is fetched."""
    monkeypatch.setattr(Planner, "_compile_seconds", lambda self, named: 0.0)
    monkeypatch.setattr(CompileAhead, "has_a_core", staticmethod(lambda: True))


def write(speculation):
    return decode(MODEL, [5, 6, 7], GREEDY, speculation, max_new_tokens=TOKENS)


def test_a_plan_whose_compilation_takes_longer_than_it_can_gain_is_not_compiled(monkeypatch):
    missed = []
    monkeypatch.setattr(StepCosts, "add_missed", lambda self, named, capacity, seconds: missed.append(seconds))
    monkeypatch.setattr(Planner, "_compile_seconds", lambda self, named: 1e6)
    run = start(MODEL, [[5, 6, 7]], GREEDY, AUTO, max_new_tokens=TOKENS)
    steps = list(run)
    assert not any(step.rows[0].log.sources.any() for step in steps)
    assert run.plan_reason.startswith("plain decoding; of drafts, ")
    assert run.plan_reason.endswith("; compiling it, 1000000 s, would take longer than it could gain")
    assert [0 < seconds < 1e3 for seconds in missed] == [True]


@pytest.mark.parametrize(("stretch", "begun"), [(1e-9, True), (1e8, False)])
def test_a_compilation_costs_what_it_takes_beside_decoding(monkeypatch, stretch, begun):
    """A second alone is paid by no text of this length, unless decoding made it shorter."""
    compiled = []
    monkeypatch.setattr(Planner, "_compile_seconds", lambda self, named: 1.0)
    monkeypatch.setattr(CompileAhead, "has_a_core", staticmethod(lambda: True))
    monkeypatch.setattr(CompileAhead, "begin", lambda self, function: compiled.append(function) or Future())
    monkeypatch.setattr(module, "STRETCH", stretch)
    list(start(MODEL, [[5, 6, 7]], GREEDY, AUTO, max_new_tokens=TOKENS))
    assert bool(compiled) is begun


def test_a_plan_that_earlier_texts_missed_is_compiled_for_a_text_too_short_to_pay_for_it(monkeypatch):
    monkeypatch.setattr(Planner, "_compile_seconds", lambda self, named: 1e6)
    monkeypatch.setattr(StepCosts, "missed_seconds", lambda self, named, capacity: 2e6)
    monkeypatch.setattr(CompileAhead, "has_a_core", staticmethod(lambda: False))
    own = replace(AUTO, node_budget=1)  # other tests need the programs of AUTO not to be here yet
    run = start(MODEL, [[5, 6, 7]], GREEDY, own, max_new_tokens=TOKENS)
    list(run)
    # The fastest of the moment; what the text then shows may make another plan the fastest.
    assert any(map(run.engine.is_compiled, run._policy._chooser.plans))


def test_an_error_of_the_thread_surfaces(wanted, monkeypatch):
    def failing(self, compile_them):
        future = Future()
        future.set_exception(RuntimeError("the compiler gave up"))
        return future

    monkeypatch.setattr(CompileAhead, "begin", failing)
    with pytest.raises(RuntimeError, match="gave up"):
        write(AUTO)


def test_a_run_ends_while_a_program_is_still_being_compiled(wanted, monkeypatch):
    begin, gone = CompileAhead.begin, threading.Event()

    def slow(self, compile_them):
        return begin(self, lambda stopped: (gone.wait(60), compile_them(stopped))[1])

    monkeypatch.setattr(CompileAhead, "begin", slow)
    begun = time.perf_counter()
    run = start(MODEL, [[5, 6, 7]], GREEDY, AUTO, max_new_tokens=TOKENS)
    list(run)
    assert time.perf_counter() - begun < 50
    assert run.plan_reason.endswith("its program was still being compiled")
    gone.set()
    for thread in threading.enumerate():
        if thread.name.startswith(COMPILING):
            thread.join()
    assert run.engine.is_compiled(run._policy.next_plan()[0])


def test_a_plan_that_arrives_takes_over_and_the_text_is_the_same(wanted, monkeypatch):
    begin = CompileAhead.begin

    def at_once(self, compile_them):
        future = begin(self, compile_them)
        future.result()
        return future

    monkeypatch.setattr(CompileAhead, "begin", at_once)
    # A step of this model is shorter than the overhead of a chunk, and a busy machine makes prices of it.
    monkeypatch.setattr(Planner, "price", lambda self, named: 1.2)
    monkeypatch.setattr(text_knowledge, "CPU_OVERHEAD", 0.0)
    text = write(AUTO)
    assert [entry["mode"] for entry in text.trace[:2]] == ["autoregressive", "tokenswift"]
    assert (text.sources > 0).mean() > 0.3
    assert_same(text.tokens, write(PLAIN).tokens)


def test_a_mode_asked_for_by_name_waits_for_its_program_and_always_drafts():
    text = write(replace(AUTO, mode="tokenswift"))
    assert {entry["mode"] for entry in text.trace} == {"tokenswift"}
    assert_same(text.tokens, write(PLAIN).tokens)
