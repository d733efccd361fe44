"""The choice among plans by measurement: never slower than plain decoding by more than a small, accounted loss."""

from __future__ import annotations

from collections import deque

from tokenswift_jax.decoding.plans import NamedPlan

# Share of plain decoding's time that speculation may lose, over HORIZON tokens or the whole text. A trial is only begun
# within it; what its first iteration costs is unknown before, and that may exceed it.
ALLOWANCE, HORIZON = 0.015, 2048
MARGIN = 1.03  # a plan must be this much faster than plain decoding to be taken
PLAIN_TOKENS = 32  # of a measurement of plain decoding
TRIAL_ITERATIONS = 8  # of a trial's piece
TRIAL_PIECES = 3  # at most; only a plan that is about as fast as plain decoding needs more than one
AMBIGUOUS = (0.75, 1.15)  # cost relative to plain decoding's after a piece that asks for another
CHUNK_ITERATIONS = 16  # of a plan in use: what it can lose before it is dropped
BAD_CHUNK = 1.25  # a plan in use is dropped after one chunk that costs this much more than plain decoding
REMEMBERED = 4  # chunks that a plan's cost is taken from
WORTH_TRYING = 64  # tokens still to come; with fewer, a trial cannot repay itself
FIRST_WAIT, LONGEST_WAIT = 256, 8192  # tokens between two rounds of trials, doubled after each that found nothing
STAY = 2048  # tokens before a plan in use is compared with the others again


class Tuner:
    """Names the plan of the next chunk.

    It begins with plain decoding, tries each speculative plan for a few iterations, keeps the fastest, and returns to
    plain decoding as soon as that is faster. An account of what speculation lost (gains repay it) limits trials:
    those that do not pay grow rarer, and the first iteration of each, its price, decides whether more are affordable.
    Whatever it names, the text is the same.

    Attributes:
      current: the plan in use between trials.
    """

    def __init__(self, plain: NamedPlan, plans: list[NamedPlan], max_new_tokens: int) -> None:
        self.plain = plain
        self.plans = plans
        self.current = plain
        self._chunks: dict[NamedPlan, deque[tuple[int, float]]] = {
            named: deque(maxlen=REMEMBERED) for named in [plain, *plans]
        }
        # Trials to come: the plan, how many iterations, how many of its pieces went before. A speculative plan's
        # piece 0 is one iteration for its price.
        self._queue: deque[tuple[NamedPlan, int, int]] = deque()
        if plans:
            self._queue.extend([(plain, PLAIN_TOKENS, 0), (plain, PLAIN_TOKENS, 1)])
            self._queue.extend((named, 1, 0) for named in plans)
        self._max_new_tokens = max_new_tokens
        self._plain_cost = 0.0
        self._prices: dict[NamedPlan, float] = {}  # an iteration's cost relative to plain decoding's step
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
        if self._queue:
            return self._queue[0][:2]
        return self.current, None if not self.plans or self.current is self.plain else CHUNK_ITERATIONS

    def observe(self, named: NamedPlan, tokens: int, seconds: float) -> None:
        """Takes in a finished chunk: `tokens` a row (the fewest of the batch), wall seconds without compilation."""
        self._tokens += tokens
        if not tokens or not self.plans:
            return
        if named is self.plain:
            self._chunks[named].append((tokens, seconds))
            paces = sorted(seconds / tokens for tokens, seconds in self._chunks[named])
            self._plain_cost = paces[(len(paces) - 1) // 2]  # the lower middle: the host's hiccups are no news
        else:
            self._lost = max(0.0, self._lost + seconds - tokens * self._plain_cost)
        if self._queue and named is self._queue[0][0]:
            self._observe_trial(*self._queue.popleft(), tokens, seconds)
            return
        if named is not self.plain:
            self._chunks[named].append((tokens, seconds))
        if self._queue:
            return  # a chunk that was under way when the round began
        if named is self.current and named is not self.plain and self._stopped_paying():
            self.current = self.plain
            self._chunks[self.plain].clear()
            self._wait = FIRST_WAIT
            self._next_round = self._tokens + self._wait
        elif self._next_round <= self._tokens < self._max_new_tokens - WORTH_TRYING:
            self._begin_round()

    def _observe_trial(self, named: NamedPlan, iterations: int, piece: int, tokens: int, seconds: float) -> None:
        if named is not self.plain:
            if piece == 0:
                self._prices[named] = seconds / iterations / self._plain_cost
                # Dearer than the most tokens that an iteration can give, it cannot pay.
                again = self._affordable(named, TRIAL_ITERATIONS) and self._prices[named] < named.plan.depth + 1
            else:
                self._chunks[named].append((tokens, seconds))
                low, high = AMBIGUOUS
                unsure = low < self._cost(named) / self._plain_cost < high
                again = unsure and piece < TRIAL_PIECES and self._left() > 0
            if again:
                self._queue.appendleft((named, TRIAL_ITERATIONS, piece + 1))
            elif self._left() <= 0:
                self._queue.clear()
        if not self._queue:
            self._decide()

    def _left(self) -> float:
        """Seconds that may still be lost."""
        horizon = max(self._tokens, min(HORIZON, self._max_new_tokens))
        return ALLOWANCE * self._plain_cost * horizon - self._lost

    def _affordable(self, named: NamedPlan, iterations: int) -> bool:
        """Whether so many iterations may be lost entirely; True where the price is unknown."""
        price = self._prices.get(named, 1.0)
        return iterations * (price - 1) * self._plain_cost <= self._left()

    def _cost(self, named: NamedPlan) -> float:
        """Seconds a token of a speculative plan, over its remembered chunks."""
        chunks = self._chunks[named]
        return sum(seconds for _, seconds in chunks) / sum(tokens for tokens, _ in chunks)

    def _stopped_paying(self) -> bool:
        tokens, seconds = self._chunks[self.current][-1]
        return seconds > BAD_CHUNK * self._plain_cost * tokens or self._cost(self.current) > self._plain_cost

    def _decide(self) -> None:
        tried = [named for named in self.plans if self._chunks[named]]
        best = min(tried, key=self._cost, default=self.plain)
        pays = best is not self.plain and self._cost(best) * MARGIN < self._plain_cost
        self.current = best if pays else self.plain
        self._wait = FIRST_WAIT if pays else min(2 * self._wait, LONGEST_WAIT)
        self._next_round = self._tokens + (STAY if pays else self._wait)

    def _begin_round(self) -> None:
        """Measures anew: plain decoding first, when it is not what runs, then the other plans, the best known first."""
        self._next_round = self._tokens + self._wait
        affordable = [named for named in self.plans if self._affordable(named, 1 + TRIAL_ITERATIONS)]
        others = [named for named in affordable if named is not self.current]
        others.sort(key=lambda named: self._cost(named) if self._chunks[named] else 0.0)
        if self._left() <= 0 or (not others and self.current is self.plain):
            return
        for named in self.plans:
            if named is not self.current:
                self._chunks[named].clear()
        if self.current is not self.plain:
            self._chunks[self.plain].clear()
            self._queue.append((self.plain, PLAIN_TOKENS, 0))
        self._queue.extend((named, 1, 0) for named in others)
