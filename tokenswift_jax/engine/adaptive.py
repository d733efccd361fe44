"""The choice of a plan by measurement; a small, accounted loss bounds the time it may cost beyond plain decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tokenswift_jax.speculate.plans import NamedPlan

# Speculation may lose at most this share of plain decoding's time, counted over the tokens so far or over HORIZON
# tokens (max_new_tokens, if fewer), whichever is more. The tuner begins a trial only within this allowance; the cost of
# a trial's first iteration is unknown beforehand and may exceed it.
ALLOWANCE, HORIZON = 0.02, 2048
# Unprofitable trials may use at most this share of all work, counted in plain decoding steps over the same tokens.
# Together with the overshoot of a first iteration, at most 3% of the work on a row that accepts no drafts is not plain
# decoding.
IN_VAIN = 0.027
MARGIN = 1.03  # the tuner takes a plan only if it is faster than plain decoding by this factor
PLAIN_TOKENS = 32  # tokens in one measurement of plain decoding
PROBE_ITERATIONS = 4  # iterations of a trial's piece 1, after the price; a trial without an accepted draft ends there
TRIAL_ITERATIONS = 8  # iterations of each later piece
TRIAL_PIECES = 4  # the most pieces after the price; only a plan about as fast as plain decoding needs more than one
AMBIGUOUS = (0.75, 1.15)  # a cost in this range, relative to plain decoding's, requires another piece
CHUNK_ITERATIONS = 16  # the most iterations of one chunk of a plan in use: they bound its loss before it is dropped
BAD_CHUNK = 1.25  # the tuner drops a plan in use after one chunk that costs more than this multiple of plain decoding
REMEMBERED = 4  # newest chunks that determine a plan's cost
WORTH_TRYING = 64  # remaining tokens; with fewer, a trial cannot repay itself
FIRST_WAIT, LONGEST_WAIT = 256, 8192  # tokens between two rounds of trials; doubled after a round that found nothing
STAY = 2048  # tokens before the tuner compares a plan in use with the others again
FORESEEN = 1.15  # foreseen plain steps that an iteration replaces, per plain step that it costs, worth a trial
FORESEEN_ALLOWANCE = 2.0  # multiple of ALLOWANCE that a trial of a foreseen plan may risk: it is expected to gain
# Before an iteration's first, n rows are assumed to cost 1 + n / CPU_ROWS plain steps: 4 rows of a 135M model on two
# cores cost 1.5. An H200 needs 1.13 plain steps for 16 rows of an 8B.
CPU_ROWS, ACCELERATOR_ROWS = 8, 123
FORESEEN_WAIT = 32  # tokens between two trials of foreseen plans; doubled after one that was not taken
ASSUMED_REBUILD = 8.0  # assumed cost of a draft cache's first rebuild, in plain steps (measured on a CPU: 1 to 9)


class Tuner:
    """Names the plan of the next chunk.

    The tuner begins with plain decoding, tries each speculative plan for a few iterations, keeps the fastest, and
    returns to plain decoding as soon as that is faster. The emitted token ids do not depend on its choice.

    Two accounts limit trials. The first counts the time that speculation lost; gains repay it. Trials that do not pay
    off grow rarer, and the first iteration of a trial gives its price, which decides whether the accounts can afford
    more iterations. The second counts all the work of trials that gained nothing, not only their cost beyond plain
    decoding. The catch-up with a plan counts as a loss but does not count towards the plan's pace; the tuner tries
    plans with an expensive catch-up last, and only if the account can afford it.

    For plans whose tokens an iteration can be foreseen (n-grams), the text itself decides when a trial is worth it: the
    tuner tries such a plan as soon as the newest tokens foretell a gain, and never before. These trials are not in
    vain, so the second account does not limit them.

    Attributes:
      current: the plan in use between trials.
    """

    def __init__(
        self,
        plain: NamedPlan,
        plans: list[NamedPlan],
        max_new_tokens: int,
        foresee: Callable[[NamedPlan], float | None] = lambda _: None,
        rows_a_step: int = CPU_ROWS,
    ) -> None:
        """foresee: the tokens an iteration that a plan would have emitted lately; None where nothing tells them.
        rows_a_step: the rows that are assumed to cost as much as one plain step more."""
        self.plain = plain
        self._foresee = foresee
        self._rows_a_step = rows_a_step
        self._foreseen_wait, self._next_foreseen = FORESEEN_WAIT, 0
        self.plans = plans
        self.current = plain
        self._chunks: dict[NamedPlan, deque[tuple[int, float]]] = {
            named: deque(maxlen=REMEMBERED) for named in [plain, *plans]
        }
        # Pending trials: the plan, the iterations, and the number of pieces already run. Piece 0 of a speculative plan
        # is one iteration, which gives its price.
        self._queue: deque[tuple[NamedPlan, int, int]] = deque()
        if plans:
            self._queue.extend([(plain, PLAIN_TOKENS, 0), (plain, PLAIN_TOKENS, 1)])
            blind = [named for named in plans if foresee(named) is None]
            self._queue.extend((named, 1, 0) for named in sorted(blind, key=_keeps_a_cache))
        self._max_new_tokens = max_new_tokens
        self._plain_cost = 0.0
        self._prices: dict[NamedPlan, float] = {}  # cost of one iteration, in plain steps
        self._rebuilds: dict[NamedPlan, float] = {}  # latest catch-up of plans with a draft cache, seconds
        self._ran = plain  # plan of the latest chunk: the state is up to date for it
        self._lost = 0.0
        self._in_vain = 0.0
        self._tokens = 0
        self._why = "the text ended before plain decoding was measured" if plans else "the checkpoint allows no drafts"
        self._wait = FIRST_WAIT
        self._next_round = 0

    @property
    def trying(self) -> bool:
        """Whether trials are under way; the session then times their chunks one by one."""
        return bool(self._queue)

    @property
    def reason(self) -> str:
        """Why the present plan runs; of plain decoding also what the newest text foretells."""
        foreseen = [gain for gain in map(self._foresee, self.plans) if gain is not None]
        if self.current is self.plain and foreseen:
            return f"{self._why}; n-grams foretell {max(foreseen):.2f} tokens an iteration at the end"
        return self._why

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk and the most iterations it may run (None: a whole chunk)."""
        if self._queue:
            return self._queue[0][:2]
        return self.current, None if not self.plans or self.current is self.plain else self._chunk_iterations()

    def observe(self, named: NamedPlan, tokens: int, seconds: float, catch_up: float = 0.0) -> None:
        """Records a finished chunk.

        Args:
          named: the chunk's plan.
          tokens: emitted tokens per row, the minimum over the batch.
          seconds: wall time of the chunk, compilation excluded.
          catch_up: seconds spent before the chunk to bring the state up to date for the plan, compilation excluded.
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
            self._plain_cost = paces[(len(paces) - 1) // 2]  # the lower median ignores hiccups of the host
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
            return  # the chunk was under way when the round began
        if named is self.current and named is not self.plain and self._stopped_paying():
            self._why = f"{named.label} stopped paying"
            self.current = self.plain
            self._chunks[self.plain].clear()
            self._wait = FIRST_WAIT
            self._next_round = self._tokens + self._wait
            self._next_foreseen = self._tokens + self._foreseen_wait
        elif self._tokens < self._max_new_tokens - WORTH_TRYING:
            if self._next_round <= self._tokens:
                self._begin_round()
            elif self.current is self.plain and self._next_foreseen <= self._tokens:
                self._queue.extend((named, 1, 0) for named in self._foreseen())

    def _observe_trial(self, named: NamedPlan, iterations: int, piece: int, tokens: int, seconds: float) -> None:
        again = False
        if named is not self.plain:
            if piece == 0:
                price, most = seconds / iterations / self._plain_cost, named.plan.depth + 1
                self._prices[named] = min(price, most)
                # An iteration that costs more plain steps than it can emit tokens can never pay off.
                again = price < most and self._affordable(named, PROBE_ITERATIONS)
            else:
                self._chunks[named].append((tokens, seconds))
                low, high = AMBIGUOUS
                unsure = low < self._cost(named) / self._plain_cost < high
                again = unsure and tokens > iterations and piece < TRIAL_PIECES
                again = again and self._affordable(named, TRIAL_ITERATIONS)
        if again:
            self._queue.appendleft((named, TRIAL_ITERATIONS if piece else PROBE_ITERATIONS, piece + 1))
        elif self._chunks[named] and self._gain(named) >= FORESEEN and self._cost(named) * FORESEEN < self._plain_cost:
            self._queue.clear()  # it had the greatest foreseen gain, and it gains
        else:
            self._queue = deque(trial for trial in self._queue if self._affordable(trial[0], 1))
        if not self._queue and named is self.plain:
            self._queue.extend((foreseen, 1, 0) for foreseen in self._foreseen())
        if not self._queue:
            self._decide()

    def _foreseen(self) -> list[NamedPlan]:
        """The plans that the newest tokens foretell a gain for and the account can afford, the greatest gain first."""
        gains = {named: self._gain(named) for named in self.plans}
        found = [named for named, gain in gains.items() if gain >= FORESEEN and self._affordable(named, 1)]
        return sorted(found, key=gains.__getitem__, reverse=True)

    def _gain(self, named: NamedPlan) -> float:
        """Plain steps that an iteration is foreseen to replace, per plain step that it costs; 0 for a blind plan."""
        assumed = 1 + named.plan.rows / self._rows_a_step
        return (self._foresee(named) or 0.0) / self._prices.get(named, assumed)

    def _chunk_iterations(self) -> int:
        """The most iterations of the current plan's next chunk: fewer when the account has little left, because one
        more chunk is already under way when the session reads the first useless one."""
        excess = (self._prices[self.current] - 1) * self._plain_cost
        if excess <= 0 or 2 * CHUNK_ITERATIONS * excess <= self._left():
            return CHUNK_ITERATIONS
        return max(int(self._left() / (2 * excess)), TRIAL_ITERATIONS)

    def _left(self) -> float:
        """Seconds that speculation may still lose."""
        return ALLOWANCE * self._accounted() - self._lost

    def _accounted(self) -> float:
        """Seconds of plain decoding that both accounts' shares refer to."""
        return self._plain_cost * max(self._tokens, min(HORIZON, self._max_new_tokens))

    def _affordable(self, named: NamedPlan, iterations: int) -> bool:
        """Whether both accounts can afford to lose so many iterations entirely, with the catch-up to the plan and the
        later catch-up to the current one. An unknown price counts as that of a plain step."""
        price = max(self._prices.get(named, 1.0), 1.0)
        rebuilding = self._rebuild(named) + self._rebuild(self.current, leaving=True)
        loss, work = (iterations * units * self._plain_cost + rebuilding for units in (price - 1, price))
        if self._gain(named) >= FORESEEN:
            return loss < FORESEEN_ALLOWANCE * ALLOWANCE * self._accounted() - self._lost
        return loss < self._left() and self._in_vain + work < IN_VAIN * self._accounted()

    def _rebuild(self, named: NamedPlan, *, leaving: bool = False) -> float:
        """Expected seconds of the catch-up with a plan, now or (`leaving`) after another plan has run. An n-gram table
        keeps its entries and catches up quickly; a draft cache must be rebuilt."""
        if not _keeps_a_cache(named) or (named is self._ran and not leaving):
            return 0.0
        return self._rebuilds.get(named, ASSUMED_REBUILD * self._plain_cost)

    def _cost(self, named: NamedPlan) -> float:
        """Seconds per token of a speculative plan, over its remembered chunks."""
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
        if pays:
            self._why = f"{best.label} was {self._plain_cost / self._cost(best):.2f}x as fast as plain decoding"
        elif tried:
            paces = {named: self._plain_cost / self._cost(named) for named in tried}
            fastest = max(paces, key=paces.__getitem__)
            self._why = f"{fastest.label} was tried at {paces[fastest]:.2f}x of plain decoding's speed"
        else:
            self._why = "no trial of drafts promised to pay"
        if tried:
            self._foreseen_wait = FORESEEN_WAIT if pays else 2 * self._foreseen_wait
            self._next_foreseen = self._tokens + self._foreseen_wait
            self._wait = FIRST_WAIT if pays else min(2 * self._wait, LONGEST_WAIT)
        self._next_round = self._tokens + (STAY if pays else self._wait)

    def _begin_round(self) -> None:
        """Queues new trials: plain decoding first unless it is running, then the other plans, the best known first."""
        self._next_round = self._tokens + self._wait
        others = [named for named in self.plans if named is not self.current]
        promising = [named for named in others if self._foresee(named) is None or self._gain(named) >= FORESEEN]
        affordable = [named for named in promising if self._affordable(named, 1 + PROBE_ITERATIONS)]
        for named in set(others) - set(affordable):
            # One iteration, perhaps a disturbed one, gave this price. Without halving its excess over a plain step,
            # the tuner might never try the plan again.
            if named in self._prices:
                self._prices[named] = 1 + (self._prices[named] - 1) / 2
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
    return any(part.rebuilt for part in named.plan.drafter.parts)
