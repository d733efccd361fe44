"""The choice of a plan from knowledge: the cost of an iteration of each, and the tokens that it is foreseen to emit."""

from __future__ import annotations

from collections import deque
from math import ceil

from tokenswift_jax.engine.draft_evidence import DraftEvidence
from tokenswift_jax.engine.plan_knowledge import Knowledge
from tokenswift_jax.speculate.plans import NamedPlan

# The promise is 0.97 of plain decoding's speed on any text. Of these 3%, 1% is kept for the overhead of short plain
# chunks (`SHORTEST`); drafts that are not accepted may lose the other 2%, of the tokens so far, or of the first HORIZON
# tokens. Chunks of MOST iterations are those of plain decoding, so where they are not shorter (WHOLE), 0.2% is enough
# for the host's own work. N-grams and heads have a half each, and all gains together. Without halves, a look at heads
# in vain takes the means of n-grams that pay (cost: all of their gain of 1.6 on a JSON list of 128 tokens).
ALLOWANCE, WHOLE, HORIZON = 0.02, 0.028, 256
# Seconds of iterations that tell what an iteration takes. Shorter times measure nothing: on a busy machine, one turn of
# another program (some milliseconds) would change them several times over. Beside so many, the overhead of a chunk on a
# CPU is one percent.
SHORTEST = 0.075
LEAST, MOST = 4, 32  # iterations of a plain chunk; a drafted chunk of fewer than LEAST is read before the next is sent
# Iterations of the first chunk of a plan, which is read before another is sent unless looks cost too much, and of the
# later ones. If reading costs more than these may lose, as with the demo, a first chunk is longer. These two, LEAST,
# STAKE, LOOK, MARGIN, BELIEF, RISKED, the decays, CHECKED_AGAIN and PAYING were compared on texts of SmolLM2 at two
# sets of prices, and of the demo, by `PYTHONPATH=. python tests/simulated_device.py NAME=VALUE`. Neighbouring values
# change the mean speed, relative to the best single plan, by at most 3% (of the demo's short texts by 7%), and that of
# the slowest text by up to a fifth.
FIRST, LATER = 2, 16
# The share of the account that a stay with a plan may begin with. Without it, one stay in vain near the beginning of a
# text takes the means of all later ones.
STAKE = 0.6
# Plain steps that the first chunk of a plan may lose, however cheap its iterations are. Without it, two iterations at a
# price of 1.12 decide about heads that would write a quote at temperature 1 1.5 times as fast, and turn them down.
LOOK = 0.5
# A first chunk must be able to gain so many times the overhead of the switch to its plan; a chunk whose gain is not
# foreseen must risk as much. Without it, the demo's account of a text of 256 tokens was spent on a first chunk of one
# iteration, whose draft was accepted, and n-grams that would have written the text 1.5 times as fast never ran.
PAYING = 1.8
# A plan must be so much faster than plain decoding, or than the plan in use, to be taken: estimates waver.
MARGIN = 1.05
# The extra tokens of heads on a text, relative to those on its prompt or on earlier texts, are up to so many: one model
# with 3 nodes gave 1.2 tokens an iteration of a chat at temperature 1 and 2.4 of a greedy book, and 2.5 of a JSON list
# after a prompt with 1.27.
UNSURE = 7.0
# Tokens for which a measured pace of plain decoding counts: 512 more positions make a step of SmolLM2 at most 1.2 times
# as long (24.2 ms at 16 positions, 31.3 at 1,024).
FRESH = 512
# A pace so much above the expected one is doubted. Of three measurements of the demo's plain step, the slowest took 1.2
# times the fastest.
WAVERING = 1.25
# Tokens before drafts that nothing foresees are checked again, doubled in vain. Half of the allowance pays for an
# iteration in vain at a price of 1.5 about every 50 tokens.
CHECKED_AGAIN, LONGEST_WAIT = 16, 8192
ASSUMED_REBUILD = 8.0  # assumed cost of a draft cache's first rebuild, in plain steps (measured on a CPU: 1 to 9)


class Chooser:
    """Names the plan of the next chunk: the one with the most foreseen tokens for its price.

    A plan is left within one chunk of no gain. An account bounds the loss of all plans together, on any text: no chunk
    is sent that could lose more than it has. Gains fill it.
    The emitted token ids do not depend on the choice.

    Attributes:
      current: the plan of the next chunk.
      tokens: emitted tokens so far.
    """

    def __init__(
        self, plain: NamedPlan, plans: list[NamedPlan], asked: int, knowledge: Knowledge, *, drafts_always: bool = False
    ) -> None:
        """plans: the speculative plans; none runs before `admit` has named it.
        asked: the most tokens that the text may have.
        drafts_always: plain decoding is no choice; `admit` a plan before the first chunk."""
        self.plain, self.plans = plain, plans
        self.current = plain
        self.tokens = 0
        self._asked, self._know, self._always = asked, knowledge, drafts_always
        self._usable: list[NamedPlan] = []
        self._stayed = 0  # chunks of the current plan since it was taken
        self._ran, self._begun = plain, False  # the plan of the newest chunk read, and whether there was one
        self._read_first = False  # whether that chunk was read before the next was sent
        self._paces: deque[float] = deque(maxlen=3)  # newest seconds of a plain step
        self._paced_at: int | None = None  # tokens at the newest of them
        self._timed = 0.0, 0  # seconds and iterations of the plan in use, too short yet to measure
        # Plain steps that the plans have saved, by whether their foreseen tokens follow the text (`Knowledge.is_live`).
        self._saved = dict.fromkeys(map(knowledge.is_live, plans), 0.0)
        self._evidence = DraftEvidence(knowledge)
        self._catch_ups: dict[NamedPlan, float] = {}  # plain steps of the newest
        self._under_way = 0  # iterations of the chunk that was sent beside the one just read
        self._doubted = False  # the next chunk is plain, to measure it
        self._checking: NamedPlan | None = None
        self._wait, self._next_check = CHECKED_AGAIN, 0 if any(map(self._may_pay, plans)) else CHECKED_AGAIN

    # The next chunk

    def admit(self, named: NamedPlan) -> None:
        """The plan may run from now on."""
        if named not in self._usable:
            self._usable.append(named)
            self._decide()

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk and the most iterations it may run (None: a whole chunk)."""
        if not self.plans:
            return self.plain, None
        if self.current is self.plain or self._always:
            least = LEAST
            if (step := self.plain_pace()) is not None:
                least = min(max(LEAST, ceil(SHORTEST / step)), MOST)
            if self.current is self.plain:
                return self.plain, least
            return self.current, max(least, LATER) if self._stayed else max(least, FIRST)
        return self.current, self._iterations()

    @property
    def reads_first(self) -> bool:
        """Whether the chunk under way must be read before another is sent.

        A plan's first chunk is, which halves the loss of a look in vain, unless reading it costs more than a look may
        lose; and so are short chunks near the account's end."""
        if self.current is self.plain or self._always:
            return False
        return self._iterations() < LEAST if self._stayed else not self._looks_cost_too_much()

    def speed(self, named: NamedPlan) -> float:
        """Foreseen speed of a plan, in multiples of plain decoding's."""
        return 1.0 if named is self.plain else self.gain(named) / self._know.price(named)

    def gain(self, named: NamedPlan) -> float:
        """Tokens that an iteration of a plan is foreseen to emit, corrected by the drafts that came true."""
        return self._evidence.gain(named)

    def fastest(self) -> NamedPlan | None:
        """The fastest plan, whether or not it may run yet; None without plans."""
        return max(self.plans, key=self.speed, default=None)

    def saving(self, named: NamedPlan) -> float:
        """Plain steps that each token of a plan saves, compared with the plan in use."""
        return 1 / self.speed(self.current) - 1 / self.speed(named)

    def plain_pace(self) -> float | None:
        """Seconds of a plain step: the lower median of the newest on this text, else those of earlier texts."""
        if self._paces:
            return sorted(self._paces)[(len(self._paces) - 1) // 2]
        return self._know.plain_seconds()

    @property
    def remaining(self) -> int:
        """The most tokens that the text may still get."""
        return max(self._asked - self.tokens, 0)

    @property
    def reason(self) -> str:
        """Why the current plan runs."""
        fastest = self.fastest()
        if fastest is None:
            return "the checkpoint allows no drafts"
        shown = fastest if self.current is self.plain else self.current
        gain, price = self.gain(shown), self._know.price(shown)
        facts = f"{gain:.2f} tokens an iteration for the time of {price:.2f} plain steps"
        if self.current is not self.plain:
            return f"{shown.label}, {facts}"
        lost = -self._saved[self._know.is_live(shown)]
        if lost > 0 and not self._can_lose(shown):
            return (
                f"plain decoding, because {shown.label} or drafts like it have cost {lost:.1f} plain steps in vain, "
                "and more could slow the text down by 3%"
            )
        return f"plain decoding; of drafts, {shown.label} would be best with {facts}"

    # The account of a chunk

    def observe(
        self,
        named: NamedPlan,
        tokens: int,
        iterations: int,
        seconds: float,
        catch_up: float = 0.0,
        *,
        alone: bool = True,
    ) -> None:
        """Records a finished chunk.

        Args:
          named: the chunk's plan.
          tokens: emitted tokens per row, the minimum over the batch.
          iterations: the chunk's iterations.
          seconds: wall time of the chunk, compilation excluded.
          catch_up: seconds spent before the chunk to prepare the plan's drafts, compilation excluded.
          alone: whether nothing else of this process ran meanwhile; if something did, the chunk measures nothing.
        """
        self.tokens += tokens
        if not tokens or not iterations or not self.plans:
            return
        if named is not self._ran or self._read_first:  # it did not run ahead
            seconds = max(seconds - self._know.overhead, seconds / 2)
        read_first, self._under_way = named is self.current and self.reads_first, 0
        if named is self.current is not self.plain and not self._always and not read_first:
            self._under_way = self._iterations()
        self._stayed = self._stayed + 1 if named is self.current else self._stayed
        if named is self.plain:
            self._observe_plain(tokens, seconds / iterations if alone else None)
        else:
            self._observe_drafts(named, tokens, iterations, self._pace(named, iterations, seconds, alone), catch_up)
        self._ran, self._begun, self._read_first = named, True, read_first
        self._decide()
        if read_first and self.current is named:
            self._saved[self._know.is_live(named)] -= self._overhead()

    def _observe_plain(self, tokens: int, pace: float | None) -> None:
        if pace is not None:
            if self._ran is not self.plain:
                self._paces.clear()
            self._paces.append(pace)
            self._paced_at = self.tokens
            self._know.learn_plain(pace)
        self._evidence.fade(tokens)
        self._doubted = False

    def _pace(self, named: NamedPlan, iterations: int, seconds: float, alone: bool) -> float | None:
        """Seconds of an iteration, once enough of them have been timed."""
        if not alone or self._ran is not named:
            self._timed = 0.0, 0
        if not alone:
            return None
        self._timed = self._timed[0] + seconds, self._timed[1] + iterations
        if self._timed[0] < SHORTEST:
            return None
        pace = self._timed[0] / self._timed[1]
        self._timed = 0.0, 0
        return pace

    def _observe_drafts(
        self, named: NamedPlan, tokens: int, iterations: int, pace: float | None, catch_up: float
    ) -> None:
        price, plain = self._know.price(named), self.plain_pace()
        if pace is not None and plain is not None:
            if catch_up:
                self._catch_ups[named] = catch_up / plain
            if self._is_fresh():
                self._know.learn_price(named, pace / plain)
                price, self._doubted = self._know.price(named), False
            elif not self._always:
                # Either the price is wrong or the machine is slower than it was: a plain chunk tells which.
                slow = pace > WAVERING * price * plain and tokens / iterations < MARGIN * pace / plain
                self._doubted = slow or not self._know.is_measured(named)
        elif pace is not None and not self._always:
            self._doubted = True
        saved = tokens - iterations * price - (self._catch_ups.get(named, 0.0) if catch_up else 0.0)
        self._saved[self._know.is_live(named)] += saved - (self._switches() if named is not self._ran else 0.0)
        self._evidence.add(named, tokens, iterations)
        if self._checking is named:
            self._checking = None
            paid = self.speed(named) >= MARGIN
            self._wait = CHECKED_AGAIN if paid else min(2 * self._wait, LONGEST_WAIT)
            self._next_check = self.tokens + self._wait

    # The decision

    def _decide(self) -> None:
        chosen = self._best()
        if chosen is not self.current:
            self._stayed = 0
            if chosen is self.plain:
                self._next_check = max(self._next_check, self.tokens + self._wait)
        self.current = chosen

    def _best(self) -> NamedPlan:
        plans = self._usable if self._always else [self.plain, *self._usable]
        if not plans:
            return self.plain
        if self._doubted and not self._always:
            return self.plain
        times = {named: self._time(named) for named in plans}
        if not self._always:
            times = {named: time for named, time in times.items() if self._is_choice(named, time, times[self.plain])}
        best = min(times, key=times.__getitem__)
        if self.current in times and times[best] * MARGIN > times[self.current]:
            best = self.current
        if best is not self.plain and not self._always and times[best] >= times[self.plain]:
            best = self.plain
        if best is self.plain and not self._always:
            return self._check() or self.plain
        return best

    def _is_choice(self, named: NamedPlan, time: float, plain_time: float) -> bool:
        """Whether a plan may be taken or stay; the account is asked last, because its answer takes the host longest."""
        return named is self.plain or ((named is self.current or time < plain_time) and self._can_lose(named))

    def _check(self) -> NamedPlan | None:
        """The plan that is due for a look, because nothing tells what its drafts are worth."""
        if self.tokens < self._next_check or self.remaining < HORIZON / 4:
            return None
        blind = [named for named in self._usable if not self._know.is_live(named) and self._can_lose(named)]
        if not blind:
            return None
        self._checking = max(blind, key=lambda named: self._hoped(named) / self._know.price(named))
        return self._checking

    def _may_pay(self, named: NamedPlan) -> bool:
        """Whether heads could pay although they are foreseen not to: the prompt or earlier texts tell too little."""
        if self._know.is_live(named):
            return False
        return not self._know.is_remembered(named) or self._hoped(named) > MARGIN * self._know.price(named)

    def _hoped(self, named: NamedPlan) -> float:
        """The most tokens that an iteration may prove to emit."""
        return min(1 + UNSURE * (self._evidence.foreseen(named) - 1), named.plan.depth + 1.0)

    def _time(self, named: NamedPlan) -> float:
        """Plain steps in which a plan is foreseen to write the rest of the text."""
        return max(self.remaining, 1) / self.speed(named) + self._rebuild(named)

    def _can_lose(self, named: NamedPlan) -> bool:
        """Whether the account can lose an iteration of a plan.

        Where chunks have become so short that each is read before the next is sent, it must be able to lose that
        overhead too, if it is more than the iteration."""
        left, worst = self._left(named) - self._rebuild(named), self._evidence.worst(named)
        if named is not self.current:
            return left >= self._paying(named) * worst
        overhead = self._overhead()
        alone = self._stayed and left < 2 * LEAST * worst and overhead > worst
        return left >= worst + (overhead if alone else 0.0)

    def _iterations(self) -> int:
        """Iterations of the next chunk of the plan in use: no more than the account can lose."""
        named = self.current
        left, worst = self._left(named) - self._rebuild(named), self._evidence.worst(named)
        if not self._stayed:
            least = self._paying(named)
            return max(least, min(self._first(named), max(int(left * STAKE / worst), 1)))
        if self._under_way:
            left -= self._under_way * worst
        else:
            left /= 2  # a second chunk of as many may be sent before this one is read
        return min(LATER, max(int(left / worst), 1))

    def _first(self, named: NamedPlan) -> int:
        """Iterations of the first chunk of a plan."""
        return min(max(FIRST, ceil(max(self._overhead(), LOOK) / self._evidence.worst(named))), LATER)

    def _paying(self, named: NamedPlan) -> int:
        """The fewest iterations of a plan's first chunk: the fewest that can pay for the switch to the plan."""
        gain = self.gain(named) - self._know.price(named)
        per_iteration = gain if gain > 0 else self._evidence.worst(named)
        return min(ceil(PAYING * self._switches() / per_iteration), LATER)

    def _least_look(self) -> float:
        """Plain steps that the cheapest first chunk of a plan with heads may lose."""
        heads = [named for named in self._usable if not self._know.is_live(named)]
        looks = (self._rebuild(named) + self._paying(named) * self._evidence.worst(named) for named in heads)
        return min(looks, default=0.0)

    def _allowance(self) -> float:
        """The share of the tokens, as plain steps, that drafts in vain may lose."""
        step = self.plain_pace()
        return WHOLE if step is not None and SHORTEST / step >= MOST else ALLOWANCE

    def _left(self, named: NamedPlan) -> float:
        """Plain steps that a plan may still lose: the account's, without what is left of the other kind's share."""
        live, allowed = self._know.is_live(named), self._allowance() * max(self.tokens, min(HORIZON, self._asked))
        share = allowed / len(self._saved)
        kept = sum(max(share + min(saved, 0.0), 0.0) for kind, saved in self._saved.items() if kind != live)
        if live and 0 < kept < self._least_look():
            kept = 0.0  # heads could not use it
        return sum(self._saved.values()) + allowed - kept

    def _rebuild(self, named: NamedPlan) -> float:
        """Plain steps to take a plan that did not run last: its drafts are prepared, and chunks do not run ahead."""
        if named is self._ran:
            return 0.0
        rebuilt = any(part.rebuilt for part in named.plan.drafter.parts)
        return self._switches() + self._catch_ups.get(named, ASSUMED_REBUILD if rebuilt else 0.0)

    def _switches(self) -> float:
        """Plain steps that the switch to a plan and the one back from it cost; the first chunk needs no switch.

        Where looks cost too much, a long text that begins with drafts is not charged for the switch back."""
        if not self._begun and self._asked >= HORIZON and self._looks_cost_too_much():
            return 0.0
        return (2 if self.tokens else 1) * self._overhead()

    def _looks_cost_too_much(self) -> bool:
        """Whether a chunk that does not run ahead costs more than a stay may begin with. Without this, an H200 with
        SmolLM2 drafts nothing in the first thousand tokens."""
        return self._overhead() > STAKE * self._allowance() * HORIZON / len(self._saved)

    def _overhead(self) -> float:
        """Plain steps of the overhead of a chunk that does not run ahead."""
        step = self.plain_pace()
        return self._know.overhead / step if step else 0.0

    def _is_fresh(self) -> bool:
        return self._paced_at is not None and self.tokens - self._paced_at <= FRESH
