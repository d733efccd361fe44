"""Pools and requests for tests of the scheduler, shared so that each program compiles once."""

import functools
import os
from dataclasses import replace

import numpy as np
import small_models
from decoded import decode_requests
from speculations import SPECULATIONS

from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.serve.draft_value import DraftValue
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.serve.pool import Pool, PoolSize
from tokenswift_jax.serve.run import Run, RunState
from tokenswift_jax.serve.scheduler import Scheduler

MODES = ("plain", "fused", "partial", "ngram", "selfspec")
# All modes, 500 schedules: SCHEDULES=100 pytest tests/serve/test_scheduler.py -k schedule
SCHEDULES = int(os.environ.get("SCHEDULES", 4))
SOME_MODES = MODES if "SCHEDULES" in os.environ else ("fused",)
SHORT, LONG = PoolSize(2, 110), PoolSize(2, 400)
NEW, COUNT = 60, 12
SETTINGS = (
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.3, top_p=0.9, repetition_penalty=1.2, penalty_window=24, seed=7),
    SamplingConfig(min_p=0.05, suppress_tokens=(0, 5), seed=1, sequence=11),
    SamplingConfig(top_k=6, min_tokens_to_keep=2, seed=2),
    SamplingConfig(temperature=0.7, seed=2**32 - 1, sequence=3),
)


@functools.cache
def model():
    return small_models.with_eos(small_models.successor_model(layers=1, certainty=6.0, context=0.8), 36)


@functools.cache
def request(index):
    """Prompts of 1 to 300 tokens: for both pools, on both sides of a prefill chunk and of a draft cache."""
    random = np.random.default_rng(index)
    length = (2, 290, 40, 100, 1, 33, 300)[index % 7]
    prompt = tuple(random.integers(0, small_models.VOCAB, length).tolist())
    made = Request(prompt, SETTINGS[index % len(SETTINGS)], NEW - 19 * (index % 4), 0, ((), (36,))[index % 2])
    return replace(made, predicted_ids=prompt[: 50 * (index % 3)])


@functools.cache
def alone(index):
    """The request by itself, decoded plainly."""
    (text,) = decode_requests(model(), [request(index)], SPECULATIONS["plain"])
    return text


@functools.cache
def pools(mode, sizes=(SHORT, LONG)):
    """Pools, ready; they draft at random, several texts and one."""
    features = (SamplingFeatures.GREEDY, SamplingFeatures.FILTERED) if mode == "fused" else (SamplingFeatures.FILTERED,)
    plans = PlanSet(model().config, SPECULATIONS[mode], features)
    made = [Pool(model(), size, plans) for size in sizes]
    for pool in made:
        pool.warm_up()
        if plans.drafts:
            pool.value = DraftValue(1.0, 1.0)
            pool.value.pays = functools.partial(np.random.default_rng(0).choice, [True, False])
            pool.lone = AtRandom(plans)
    return made


class AtRandom:
    """In place of `LoneTexts` and of a `LoneText`: plain decoding or drafts in chunks of any length, ahead or not."""

    def __init__(self, plans):
        self.plans, self.random = plans, np.random.default_rng(1)

    def begin(self, run, prompt, engine):
        plain, drafting = self.plans.choices(self.plans.fitting([run.request.sampling]), ngrams=False)
        made = AtRandom(self.plans)
        made.random, made.named = self.random, [plain, *drafting]
        made.choose()
        return made

    def choose(self):
        self.next = self.named[self.random.integers(len(self.named))], int(self.random.integers(1, 9))

    def next_plan(self):
        return self.next

    def may_run_ahead(self, engine):
        return engine.is_ready(self.next[0]) and self.random.random() < 0.5

    def took(self, named, token_ids, iterations, seconds):
        self.choose()

    def close(self):
        pass


class Guests:
    """A scheduler whose turns the test takes, and the runs that it was given.

    Attributes:
      heard: the updates that were published, by run.
    """

    def __init__(self, mode, max_queue=64, sizes=(SHORT, LONG), made=None):
        """Takes the shared pools of a mode, or those that were `made`."""
        self.heard = {}
        self.scheduler = Scheduler(
            made or pools(mode, sizes), lambda run, update: self.heard[run].append(update), max_queue=max_queue
        )
        self.runs = {}

    def arrive(self, index, owner="", logprobs=False, **changes):
        run = Run(replace(request(index), **changes), owner=owner, logprobs=logprobs)
        self.runs[index] = run
        self.heard[run] = []
        self.scheduler.submit(run)
        return run

    def finish(self):
        """Takes turns until every run has ended; those that pause on the way go on."""
        while True:
            while self.scheduler.turn():
                pass
            paused = [run for run in self.runs.values() if run.state is RunState.PAUSED]
            if not paused:
                return
            for run in paused:
                self.scheduler.submit(run)

    def emptied(self):
        """Nothing is left of anyone."""
        assert self.scheduler.counts == {"waiting": 0, "prefill": 0, "running": 0}
        assert not self.scheduler._places
        assert self.scheduler.queue.present == set()
