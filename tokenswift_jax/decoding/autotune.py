"""The choice among plans by measurement: never slower than plain decoding by more than a small, accounted trial."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

from tokenswift_jax.decoding.plans import NamedPlan

TRIAL_ITERATIONS = 8  # of a speculative plan: what a trial may waste is a few plain steps
TRIAL_TOKENS = 32  # of plain decoding
ALLOWANCE = 0.015  # share of plain decoding's time that all trials together may lose
MARGIN = 1.03  # a plan must be this much faster than plain decoding to be taken
FIRST_WAIT, LONGEST_WAIT = 512, 8192  # tokens between two rounds of trials when none paid


@dataclass
class _Measured:
    """Recent chunks of one plan: (tokens, seconds), newest last; about 100 tokens are remembered."""

    chunks: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=6))

    def add(self, tokens: int, seconds: float) -> None:
        self.chunks.append((tokens, seconds))

    @property
    def seconds_per_token(self) -> float:
        return statistics.median(seconds / tokens for tokens, seconds in self.chunks)


class Tuner:
    """Names the plan of the next chunk.

    It begins with plain decoding, tries each speculative plan for a few iterations, keeps the fastest, and returns to
    plain decoding as soon as that is faster. Trials that do not pay grow rarer; a plan in use is compared afresh with
    plain decoding as the text grows. Whatever it names, the text is the same.
    """

    def __init__(self, plain: NamedPlan, plans: list[NamedPlan], max_new_tokens: int) -> None:
        self.plain = plain
        self.plans = plans
        self.current = plain
        self._measured = {named: _Measured() for named in [plain, *plans]}
        self._queue: list[NamedPlan] = [plain, plain, *plans] if plans else []
        self._max_new_tokens = max_new_tokens
        self._lost = 0.0
        self._tokens = 0
        self._wait = FIRST_WAIT
        self._next_round = 0

    @property
    def trying(self) -> bool:
        """Whether trials are under way: their chunks are timed one by one."""
        return bool(self._queue)

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk, and how many iterations it may run at most (None: a whole chunk)."""
        if not self._queue:
            return self.current, None
        named = self._queue[0]
        return named, TRIAL_TOKENS if named is self.plain else TRIAL_ITERATIONS

    def observe(self, named: NamedPlan, tokens: int, seconds: float) -> None:
        """Takes in a finished chunk: `tokens` a row (the fewest of the batch), wall seconds without compilation."""
        self._tokens += tokens
        if not tokens or not self.plans:
            return
        self._measured[named].add(tokens, seconds)
        if self._queue and named is self._queue[0]:
            self._queue.pop(0)
            if named is not self.plain:
                self._lost += max(0.0, seconds - tokens * self._cost(self.plain))
                # A trial that could overdraw the account waits for the next round.
                if self._lost > ALLOWANCE * self._cost(self.plain) * max(self._tokens, self._max_new_tokens):
                    self._queue = []
            if not self._queue:
                self._decide()
        elif not self._queue:
            if named is not self.plain and self._cost(named) * MARGIN > self._cost(self.plain):
                self._decide()
            if self._tokens >= self._next_round:
                self._begin_round()

    def _cost(self, named: NamedPlan) -> float:
        return self._measured[named].seconds_per_token

    def _decide(self) -> None:
        tried = [named for named in self.plans if self._measured[named].chunks]
        best = min(tried, key=self._cost, default=self.plain)
        pays = best is not self.plain and self._cost(best) * MARGIN < self._cost(self.plain)
        self.current = best if pays else self.plain
        self._wait = FIRST_WAIT if pays else min(2 * self._wait, LONGEST_WAIT)
        self._next_round = self._tokens + (4 * FIRST_WAIT if pays else self._wait)

    def _begin_round(self) -> None:
        """Measures anew: plain decoding first, when it is not what runs, then the other plans."""
        for named in [self.plain, *self.plans]:
            if named is not self.current:
                self._measured[named].chunks.clear()
        others = [named for named in self.plans if named is not self.current]
        self._queue = ([] if self.current is self.plain else [self.plain]) + others
