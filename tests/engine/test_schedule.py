"""Mode `auto` on a real run, whose every executed program is counted, against a target that accepts no draft.

The clock is a stand-in: a device that runs one program after another, each at a stated price. The unit of work is one
step of plain decoding. A chunk's work is its iterations times the price of its plan's iteration, catching up with a
plan has a price of its own; prefill is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from decoded import PLAIN, assert_same, decode

from tokenswift_jax.engine import engine, session
from tokenswift_jax.engine.compile_ahead import CompileAhead
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import candidates
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter, HeadsDrafter
from tokenswift_jax.speculate.no_drafter import NoDrafter
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.step import loop

TOKENS, CAPACITY = 2048, 7168
PLAIN_STEPS, FUSED, PARTIAL = NoDrafter, HeadsDrafter, CachedHeadsDrafter
PRICES = {PLAIN_STEPS: 1.0, FUSED: 1.25, PARTIAL: 1.8}
DRAFTING = (FUSED, PARTIAL)
CATCH_UPS = {PARTIAL: 6.0}
# Positions of the text in whose draws the drafts come true.
GOOD_FROM, GOOD_UNTIL = 2600, 5000
FORBIDDEN = (0, 1, 2)
GREEDY = SamplingConfig(temperature=0.0, suppress_tokens=FORBIDDEN)
# No n-grams: they would foresee the text. The vocabulary is used by no other test: these programs hold the adversary.
AUTO = SpeculationConfig(mode="auto", tree=(1, 2), node_budget=3, ngram_k=0, draft_cache=64, draft_sinks=4)
MODEL = small_models.successor_model(vocab=29, layers=1, heads=1, context=0.1)
PROMPT = [5, 6, 7]


@dataclass(frozen=True)
class Executed:
    """One program that ran: chunk, frozen (a chunk on frozen rows) or catch_up, its plan's drafter, iterations, tokens
    before it, the executable."""

    program: str
    drafter: type
    iterations: int
    generated: int
    executable: object

    @property
    def work(self):
        return CATCH_UPS[self.drafter] if self.program == "catch_up" else self.iterations * PRICES[self.drafter]


@dataclass
class Device:
    """Runs what `CompileCache` sends it in order, for its price, and keeps the time and the account."""

    now: float = 0.0
    free: float = 0.0  # when the latest program that was waited for ended
    generated: int = 0
    executed: list[Executed] = field(default_factory=list)

    def record(self, program, drafter, iterations, tokens, executable, sent):
        self.executed.append(Executed(program, drafter, iterations, self.generated, executable))
        self.generated += tokens
        self.free = max(self.free, sent) + self.executed[-1].work
        self.now = max(self.now, self.free)


@dataclass
class Counts:
    """A chunk's counts; who reads them waits until the chunk has ended."""

    counts: np.ndarray
    wait: object

    def __array__(self, dtype=None, copy=None):
        if self.wait is not None:
            self.wait, wait = None, self.wait
            wait()
        return np.asarray(self.counts, dtype)


@pytest.fixture
def device(monkeypatch):
    """The stand-in clock, and an adversary in place of the heads' best candidates."""
    device = Device()

    def counted(self, function, *arguments, name="", executable=None):
        executable = executable or self.compile(function, *arguments, name=name)
        result = executable(*arguments)
        program = function.__wrapped__  # a partial with its static arguments
        if getattr(program, "func", None) is loop.catch_up:
            device.record("catch_up", type(program.args[1]), 0, 0, executable, device.now)
        if getattr(program, "func", None) is not loop.run_chunk:
            return result
        state, chunk = result
        sent, drafter = device.now, type(program.args[1].drafter)
        if int(arguments[-1]) < 0:
            device.record("frozen", drafter, int(chunk.iterations), 0, executable, sent)
            return result

        def ended():
            tokens = int(np.asarray(chunk.counts)[0])
            device.record("chunk", drafter, int(chunk.iterations), tokens, executable, sent)

        return state, replace(chunk, counts=Counts(chunk.counts, ended))

    best = candidates.DraftSampler.best

    def adversary(self, logits, above, depths, count):
        tokens, shares = best(self, logits, above, depths, count)
        good = (self.next_position >= GOOD_FROM) & (self.next_position < GOOD_UNTIL)
        wrong = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), tokens.shape)  # FORBIDDEN ones
        return jnp.where(good[:, None, None], tokens, wrong), jnp.where(good[:, None, None], shares, -1.0)

    monkeypatch.setattr(CompileCache, "run", counted)
    monkeypatch.setattr(candidates.DraftSampler, "best", adversary)
    # Programs are compiled when they are wanted, not whenever a thread has finished with them.
    monkeypatch.setattr(CompileAhead, "has_a_core", staticmethod(lambda: False))
    for module in (engine, session):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: device.now))
    return device


def write(device, speculation, tokens):
    """The text and what was executed for it, without prefill's own chunk and measurements on frozen rows."""
    device.executed, device.generated = [], 0
    text = decode(MODEL, PROMPT, GREEDY, speculation, max_new_tokens=tokens, capacity=CAPACITY)
    assert device.executed[0].iterations == 1
    return text, [one for one in device.executed[1:] if one.program != "frozen"]


def work(executed, *drafters):
    return sum(one.work for one in executed if one.drafter in drafters)


def test_drafts_that_are_never_accepted_cost_three_percent_at_most(device, monkeypatch):
    sent, send = [], session.Session._send

    def logged(self, catch_up=0.0):
        found = send(self, catch_up)
        sent.append((type(found.named.plan.drafter), device.generated))
        return found

    monkeypatch.setattr(session.Session, "_send", logged)
    text, executed = write(device, AUTO, TOKENS)
    looks = [i for i in range(1, len(sent) - 1) if sent[i][0] is FUSED is not sent[i - 1][0]]
    assert all(sent[i + 1][1] > sent[i][1] for i in looks), "a plan's first chunk is read before another is sent"
    assert not text.sources.any(), "a draft was accepted"
    assert FUSED in {one.drafter for one in executed}, "drafts were looked at"
    assert work(executed, *PRICES) <= TOKENS / 0.97
    assert sum(one.iterations for one in executed) == TOKENS - 1

    plain, alone = write(device, PLAIN, TOKENS)
    assert_same(text.tokens, plain.tokens)
    (executable,) = {one.executable for one in alone}
    assert {one.executable for one in executed if one.drafter is PLAIN_STEPS} == {executable}


def test_a_plan_is_measured_on_frozen_rows_once_it_is_compiled(device):
    write(device, AUTO, TOKENS)
    frozen = [one for one in device.executed if one.program == "frozen"]
    measured = [one.drafter for one in frozen]
    assert {PLAIN_STEPS, FUSED} <= set(measured)
    assert measured.count(FUSED) == 3, "three times, by turns with plain decoding, and never again"


def test_drafts_come_back_when_the_text_changes_and_go_when_it_changes_again(device):
    text, executed = write(device, AUTO, 7000)
    good = [one for one in executed if GOOD_FROM <= one.generated + len(PROMPT) < GOOD_UNTIL]
    drafting = [i for i, one in enumerate(good) if one.drafter in DRAFTING]
    taken = next(i for i in drafting if text.sources[good[i].generated :][:64].any())
    assert work(good[taken:], *DRAFTING) > 0.8 * work(good[taken:], *PRICES)
    assert (text.sources[good[taken].generated + 100 : GOOD_UNTIL - len(PROMPT)] > 0).mean() > 0.3

    after = [one for one in executed if one.generated + len(PROMPT) >= GOOD_UNTIL]
    left = next(i for i, one in enumerate(after) if one.drafter is PLAIN_STEPS)
    assert left <= 3, "the rest of a good chunk, the chunk that shows it, and the one under way"
    assert work(after[left:], *DRAFTING) <= 0.05 * work(after[left:], *PRICES)
