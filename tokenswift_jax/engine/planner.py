"""The plan policy of a session: it gathers the knowledge, gets programs ready and lets `Chooser` choose."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from math import ceil

from tokenswift_jax.engine.adaptive import SHORTEST, Chooser
from tokenswift_jax.engine.compile_ahead import CompileAhead
from tokenswift_jax.engine.compile_cache import longest_compilation
from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.engine.plan_programs import CHUNK_TOKENS
from tokenswift_jax.engine.row_costs import RowCosts
from tokenswift_jax.engine.step_costs import StepCosts
from tokenswift_jax.engine.text_knowledge import TextKnowledge
from tokenswift_jax.models.expected_tokens import ExpectedTokens
from tokenswift_jax.speculate.plans import NamedPlan

REPEATED = 3  # measurements of a program on frozen rows, of which the least counts; a disturbance lasts for one or two
# Measuring may take these shares: of the time that compiling the program took, and of the text to come.
OF_COMPILING, OF_TEXT = 0.1, 0.01
MANY = 2.0  # plain steps that an iteration is taken to cost before it is measured for the first time


class Planner(TextKnowledge):
    """A `PlanPolicy` that knows what plans cost and what drafts are worth.

    Before the first chunk it waits for the fastest plan's program if the compilation cache has it; other programs are
    compiled in another thread, beside decoding, if the text to come gains more time than that takes.
    """

    def __init__(
        self,
        plain: NamedPlan,
        plans: list[NamedPlan],
        asked: int,
        costs: StepCosts,
        counted: Callable[[NamedPlan], float | None],
        ngrams: Callable[[NamedPlan], float | None],
        head_share: float,
        *,
        trained: ExpectedTokens | None = None,
        row_costs: RowCosts | None = None,
        drafts_always: bool = False,
    ) -> None:
        """
        Args:
          plain: plain decoding.
          plans: the speculative plans that may run.
          asked: the most tokens of the text.
          costs, counted, ngrams, head_share, trained, row_costs: as `TextKnowledge`.
          drafts_always: whether plain decoding is no choice (a mode asked for by name).
        """
        super().__init__(plain, costs, counted, ngrams, head_share, trained, row_costs)
        self._always = drafts_always
        self._capacity = 0
        self._coming: dict[NamedPlan, Future[float]] = {}
        self._here: set[NamedPlan] = set()
        self._ahead = CompileAhead()
        self._begun = False
        self._want: NamedPlan | None = None
        self._want_known = False
        self._chooser = Chooser(plain, plans, asked, self, drafts_always=drafts_always)

    # PlanPolicy

    @property
    def reason(self) -> str:
        """Why the present plan runs, and why a faster one does not."""
        why, fastest = self._chooser.reason, self._chooser.fastest()
        if fastest is None or fastest in self._here or self._chooser.saving(fastest) <= 0:
            return why
        if fastest in self._coming:
            return f"{why}; its program was still being compiled"
        return f"{why}; compiling it, {self._compile_seconds(fastest):.0f} s, would take longer than it could gain"

    @property
    def waiting(self) -> bool:
        """Whether a program has arrived, or should be fetched, or a plan's first chunk is under way."""
        return self._chooser.reads_first or self.busy

    @property
    def busy(self) -> bool:
        """Whether a program has arrived, or should be fetched."""
        return any(future.done() for future in self._coming.values()) or self._wanted() is not None

    def attend(self, engine: Engine, length: int) -> None:
        """As `PlanPolicy.attend`."""
        self.reach(length)
        self._capacity = engine.layout.capacity
        if not self._begun:
            self._begun = True
            if engine.programs.compile_seconds:  # of prefill and plain decoding: they tell what others will take
                self._costs.add_ready(self._plain, self._capacity, engine.programs.compile_seconds)
            self._begin(engine)
        for named in [named for named, future in self._coming.items() if future.done()]:
            self._admit(engine, named, self._coming.pop(named).result() / CompileAhead.stretch())
        wanted = self._wanted()
        if wanted is not None:
            self._fetch(engine, wanted, wait=False)

    def measure(self, engine: Engine, function: Callable[[Engine], None]) -> None:
        """As `PlanPolicy.measure`."""
        function(engine)

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """As `PlanPolicy.next_plan`."""
        return self._chooser.next_plan()

    def observe(self, named: NamedPlan, tokens: int, iterations: int, seconds: float, catch_up: float = 0.0) -> None:
        """As `PlanPolicy.observe`."""
        self.reach(self._length + tokens)
        self._want_known = False
        self._chooser.observe(named, tokens, iterations, seconds, catch_up, alone=not self._coming)

    def close(self) -> None:
        """Abandons programs on their way, and records what the text would have gained by the best plan without one: a
        program that no text has time for is compiled once several of them could have had it for that."""
        self._ahead.close()
        best, step = self._chooser.fastest(), self._chooser.plain_pace()
        if best is None or step is None or not self._begun or best in self._here or best in self._coming:
            return
        missed = self._chooser.tokens * step * self._chooser.saving(best)
        if missed > 0:
            self._costs.add_missed(best, self._capacity, missed)

    # Programs

    def _begin(self, engine: Engine) -> None:
        """Admits the programs that are here, and waits for the one that the text should begin with."""
        chooser = self._chooser
        for named in chooser.plans:
            if engine.is_compiled(named):
                self._admit(engine, named, 0.0)
        fastest = chooser.fastest()
        if fastest is None or fastest in self._here:
            return
        on_disk = self._costs.was_compiled(fastest, self._capacity)
        pays = chooser.speed(fastest) > chooser.speed(chooser.current) and chooser.remaining >= CHUNK_TOKENS
        if (self._always and not self._here) or (on_disk and pays):
            self._fetch(engine, fastest, wait=True)

    def _wanted(self) -> NamedPlan | None:
        """The plan, not here yet, that gains most on the text to come; None while another is on its way."""
        if self._coming or not self._begun:
            return None
        if not self._want_known:
            self._want, self._want_known = self._most_wanted(), True
        return self._want

    def _most_wanted(self) -> NamedPlan | None:
        others = [named for named in self._chooser.plans if named not in self._here]
        best = max(others, key=self._value, default=None)
        return best if best is not None and self._value(best) > 0 else None

    def _value(self, named: NamedPlan) -> float:
        """Seconds that the text to come gains by a plan which has to be compiled first, less those of compiling, and
        those that earlier texts would have gained."""
        step = self._chooser.plain_pace()
        saving = self._chooser.saving(named)
        if step is None or saving <= 0:
            return 0.0
        compiling, pace = self._compile_seconds(named) * CompileAhead.stretch(), CompileAhead.pace()
        left = self._chooser.remaining * step - pace * compiling  # seconds of plain decoding, once the program is here
        return left * saving - (1 - pace) * compiling + self._costs.missed_seconds(named, self._capacity)

    def _compile_seconds(self, named: NamedPlan) -> float:
        """Seconds that a program is expected to take: as before, else as other programs."""
        known = self._costs.ready_seconds(named, self._capacity)
        return longest_compilation() if known is None else known

    def _fetch(self, engine: Engine, named: NamedPlan, *, wait: bool) -> None:
        if wait or not CompileAhead.has_a_core():
            before = engine.programs.compile_seconds
            engine.prepare(named)
            self._admit(engine, named, engine.programs.compile_seconds - before)
        else:
            self._coming[named] = self._ahead.begin(engine.compiling(named))
            self._want_known = False

    def _admit(self, engine: Engine, named: NamedPlan, compiled: float) -> None:
        """Lets a plan run whose program is here, after `compiled` seconds, and measures it if nothing else has."""
        self._here.add(named)
        if compiled:
            self._costs.add_ready(named, self._capacity, compiled)
        measure(engine, self._costs, self._plain, named, self._length, compiled, self._chooser.remaining)
        self._prices.clear()
        self._want_known = False
        self._chooser.admit(named)


def measure(
    engine: Engine,
    costs: StepCosts,
    plain: NamedPlan,
    named: NamedPlan,
    length: int,
    compiled: float,
    remaining: int,
) -> None:
    """Measures a plan and plain decoding by turns on frozen rows: when it is compiled, until its price is certain; of a
    program that was there, only if nothing has.

    Args:
      engine: no chunk of it is under way.
      costs: takes the result.
      plain: plain decoding.
      named: a plan whose program is compiled.
      length: committed positions.
      compiled: seconds that compiling it took; measuring may take a share of these, or of the text.
      remaining: tokens that the text may still get. If a share does not suffice for one iteration, nothing is measured.
    """
    if named is plain or costs.is_certain(named, length) or (not compiled and costs.measured(named, length)):
        return
    rounds = REPEATED * (1 + (costs.price(named, length) or MANY))
    step = costs.plain_seconds(plain, length)
    if step is None:
        if not compiled and OF_TEXT * remaining < rounds:
            return
        engine.prepare(plain)
        step = min(engine.frozen_seconds(plain, 1) for _ in range(2)) or SHORTEST
    iterations = min(ceil(SHORTEST / step), int(max(OF_COMPILING * compiled / step, OF_TEXT * remaining) / rounds))
    if iterations < 1:
        return
    engine.prepare(plain)
    engine.prepare(named)
    times = [engine.frozen_seconds(one, iterations) / iterations for _ in range(REPEATED) for one in (plain, named)]
    costs.add_plain_seconds(plain, length, min(times[::2]))
    costs.add_price(named, length, min(times[1::2]) / max(min(times[::2]), 1e-9))
