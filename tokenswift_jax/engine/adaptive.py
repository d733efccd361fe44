"""The choice among plans by measurement: never slower than plain decoding by more than a small, accounted loss."""

from __future__ import annotations

from collections import deque

from tokenswift_jax.speculate.plans import NamedPlan

# Share of plain decoding's time that speculation may lose, over HORIZON tokens or the whole text. A trial is only begun
# within it; what its first iteration costs is unknown before, and that may exceed it.
ALLOWANCE, HORIZON = 0.02, 2048
# Share of all work, counted in plain steps, that trials without a gain may be, over the same tokens: with what a first
# iteration may exceed it by, at most 3% of the work of a text whose drafts are never accepted is not plain decoding.
IN_VAIN = 0.027
MARGIN = 1.03  # a plan must be this much faster than plain decoding to be taken
PLAIN_TOKENS = 32  # of a measurement of plain decoding
PROBE_ITERATIONS = 4  # of a trial's first piece; without one accepted draft it is the last
TRIAL_ITERATIONS = 8  # of a later piece
TRIAL_PIECES = 4  # at most; only a plan that is about as fast as plain decoding needs more than one
AMBIGUOUS = (0.75, 1.15)  # cost relative to plain decoding's after a piece that asks for another
CHUNK_ITERATIONS = 16  # of a plan in use, at most: what it can lose before it is dropped
BAD_CHUNK = 1.25  # a plan in use is dropped after one chunk that costs this much more than plain decoding
REMEMBERED = 4  # chunks that a plan's cost is taken from
WORTH_TRYING = 64  # tokens still to come; with fewer, a trial cannot repay itself
FIRST_WAIT, LONGEST_WAIT = 256, 8192  # tokens between two rounds of trials, doubled after each that found nothing
STAY = 2048  # tokens before a plan in use is compared with the others again
ASSUMED_REBUILD = 8.0  # plain steps that a draft cache's first rebuilding is taken to cost (measured on a CPU: 1 to 9)


class Tuner:
    """Names the plan of the next chunk.

    It begins with plain decoding, tries each speculative plan for a few iterations, keeps the fastest, and returns to
    plain decoding as soon as that is faster. An account of what speculation lost (gains repay it) limits trials:
    those that do not pay grow rarer, and the first iteration of each, its price, decides whether more are affordable.
    A second account is of all the work of trials that gained nothing, not only of what it cost beyond plain decoding.
    What catching up with a plan costs is lost too, but says nothing of the plan's pace; plans for which it is dear
    are tried last, and only where the account has room for it. Whatever it names, the text is the same.

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
            self._queue.extend((named, 1, 0) for named in sorted(plans, key=_keeps_a_cache))
        self._max_new_tokens = max_new_tokens
        self._plain_cost = 0.0
        self._prices: dict[NamedPlan, float] = {}  # an iteration's cost relative to plain decoding's step
        self._rebuilds: dict[NamedPlan, float] = {}  # seconds of the latest catch-up of plans that keep a draft cache
        self._ran = plain  # the latest chunk's plan, the one that nothing need catch up with
        self._lost = 0.0
        self._in_vain = 0.0
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
        return self.current, None if not self.plans or self.current is self.plain else self._chunk_iterations()

    def observe(self, named: NamedPlan, tokens: int, seconds: float, catch_up: float = 0.0) -> None:
        """Takes in a finished chunk.

        Args:
          named: its plan.
          tokens: of a row, the fewest of the batch.
          seconds: wall time of the chunk, compilation excluded.
          catch_up: seconds that bringing the state up to the plan took before it, compilation excluded.
        """
        self._tokens += tokens
        if not tokens or not self.plans:
            return
        self._ran = named
        if catch_up and _keeps_a_cache(named):
            self._rebuilds[named] = catch_up
        if named is self.plain:
            self._chunks[named].append((tokens, seconds))
            paces = sorted(seconds / tokens for tokens, seconds in self._chunks[named])
            self._plain_cost = paces[(len(paces) - 1) // 2]  # the lower middle: the host's hiccups are no news
        else:
            gained = tokens * self._plain_cost - seconds - catch_up
            self._lost = max(0.0, self._lost - gained)
            if gained > 0:
                self._in_vain = max(0.0, self._in_vain - gained)
            elif self._queue and named is self._queue[0][0]:
                self._in_vain += seconds + catch_up
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
        again = False
        if named is not self.plain:
            if piece == 0:
                price, most = seconds / iterations / self._plain_cost, named.plan.depth + 1
                self._prices[named] = min(price, most)
                # Dearer than the most tokens that an iteration can give, it cannot pay.
                again = price < most and self._affordable(named, PROBE_ITERATIONS)
            else:
                self._chunks[named].append((tokens, seconds))
                low, high = AMBIGUOUS
                unsure = low < self._cost(named) / self._plain_cost < high
                again = unsure and tokens > iterations and piece < TRIAL_PIECES
                again = again and self._affordable(named, TRIAL_ITERATIONS)
        if again:
            self._queue.appendleft((named, TRIAL_ITERATIONS if piece else PROBE_ITERATIONS, piece + 1))
        else:
            self._queue = deque(trial for trial in self._queue if self._affordable(trial[0], 1))
        if not self._queue:
            self._decide()

    def _chunk_iterations(self) -> int:
        """Iterations of the current plan's next chunk: fewer where little may be lost, as one more chunk is under way
        when the first useless one has shown itself."""
        excess = (self._prices[self.current] - 1) * self._plain_cost
        if excess <= 0 or 2 * CHUNK_ITERATIONS * excess <= self._left():
            return CHUNK_ITERATIONS
        return max(int(self._left() / (2 * excess)), TRIAL_ITERATIONS)

    def _left(self) -> float:
        """Seconds that may still be lost."""
        return ALLOWANCE * self._accounted() - self._lost

    def _accounted(self) -> float:
        """Seconds of plain decoding that both accounts are shares of."""
        return self._plain_cost * max(self._tokens, min(HORIZON, self._max_new_tokens))

    def _affordable(self, named: NamedPlan, iterations: int) -> bool:
        """Whether so many iterations may be lost entirely, with catching up with the plan and, afterwards, with the
        current one, and be work in vain; where the price is unknown, whether anything may."""
        price = max(self._prices.get(named, 1.0), 1.0)
        rebuilding = self._rebuild(named) + self._rebuild(self.current, leaving=True)
        loss, work = (iterations * units * self._plain_cost + rebuilding for units in (price - 1, price))
        return loss < self._left() and self._in_vain + work < IN_VAIN * self._accounted()

    def _rebuild(self, named: NamedPlan, *, leaving: bool = False) -> float:
        """Seconds that taking up a plan is expected to cost, now or (`leaving`) once another has run. An n-gram table
        keeps what it holds and is soon brought up to date; a draft cache is built anew."""
        if not _keeps_a_cache(named) or (named is self._ran and not leaving):
            return 0.0
        return self._rebuilds.get(named, ASSUMED_REBUILD * self._plain_cost)

    def _cost(self, named: NamedPlan) -> float:
        """Seconds a token of a speculative plan, over its remembered chunks."""
        chunks = self._chunks[named]
        return sum(seconds for _, seconds in chunks) / sum(tokens for tokens, _ in chunks)

    def _stopped_paying(self) -> bool:
        tokens, seconds = self._chunks[self.current][-1]
        return seconds > BAD_CHUNK * self._plain_cost * tokens or self._cost(self.current) > self._plain_cost

    def _decide(self) -> None:
        tried = [named for named in self.plans if self._chunks[named]]
        horizon = min(STAY, self._max_new_tokens - self._tokens)
        totals = {named: self._cost(named) * horizon + self._rebuild(named) for named in tried}
        best = min(totals, key=totals.__getitem__, default=self.plain)
        pays = best is not self.plain and self._cost(best) * MARGIN < self._plain_cost
        pays = pays and totals[best] < self._plain_cost * horizon
        self.current = best if pays else self.plain
        self._wait = FIRST_WAIT if pays else min(2 * self._wait, LONGEST_WAIT)
        self._next_round = self._tokens + (STAY if pays else self._wait)

    def _begin_round(self) -> None:
        """Measures anew: plain decoding first, when it is not what runs, then the other plans, the best known first."""
        self._next_round = self._tokens + self._wait
        others = [named for named in self.plans if named is not self.current]
        affordable = [named for named in others if self._affordable(named, 1 + PROBE_ITERATIONS)]
        for named in set(others) - set(affordable):
            # One iteration, perhaps disturbed, gave the price: it is not held against the plan for ever.
            self._prices[named] = 1 + (self._prices.get(named, 1.0) - 1) / 2
        others = affordable
        others.sort(key=lambda named: (self._cost(named) if self._chunks[named] else 0.0, _keeps_a_cache(named)))
        if self._left() <= 0 or (not others and self.current is self.plain):
            return
        for named in self.plans:
            if named is not self.current:
                self._chunks[named].clear()
        if self.current is not self.plain:
            self._chunks[self.plain].clear()
            self._queue.append((self.plain, PLAIN_TOKENS, 0))
        self._queue.extend((named, 1, 0) for named in others)


def _keeps_a_cache(named: NamedPlan) -> bool:
    return named.plan.draft is not None
