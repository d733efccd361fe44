"""A session: it runs the rows of one call from their prompts to their ends, in an engine with as many slots."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from tokenswift_jax.engine import capacity as memory
from tokenswift_jax.engine.device_pace import DevicePace
from tokenswift_jax.engine.engine import VACANT, Engine
from tokenswift_jax.engine.foresight import NgramForesight, has_ngrams
from tokenswift_jax.engine.heads_foresight import HeadsForesight
from tokenswift_jax.engine.layout import Layout, scratch_of
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.engine.planner import Planner, measure
from tokenswift_jax.engine.policy import FixedPlan, PlanPolicy
from tokenswift_jax.engine.prefill import chunk_rows
from tokenswift_jax.engine.row_costs import row_costs_of
from tokenswift_jax.engine.step_costs import costs_of
from tokenswift_jax.engine.step_result import Pending, StepResult
from tokenswift_jax.engine.text_knowledge import head_share_of
from tokenswift_jax.errors import NumericsError, UserError
from tokenswift_jax.finish import REASONS, Finish
from tokenswift_jax.modes import is_adaptive
from tokenswift_jax.parallel.mesh_spec import DATA
from tokenswift_jax.processes.agreement import leads
from tokenswift_jax.processes.policy import agreed_policy
from tokenswift_jax.progress_report import Report, phase, silent
from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import features_for
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.sample.params import ngram_lag_of
from tokenswift_jax.schedule_trace import Entry, trace_entry
from tokenswift_jax.speculate import plans
from tokenswift_jax.speculate.draft_model import with_draft_model
from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.step.state import DecodeState
from tokenswift_jax.token_log import TokenLog

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

# Smaller values of these lower a session's memory.
_MEMORY_ARGUMENTS = ("max_new_tokens", "capacity", "draft_cache", "ngram_slots")


@dataclass(frozen=True)
class RowStep:
    """The result of one finished chunk for one row.

    Attributes:
      log: the row's new tokens.
      finish: "length" or "eos" once the row has ended, else None.
      error: the reason that the row cannot continue; it ends this row but not its neighbours.
    """

    log: TokenLog
    finish: str | None = None
    error: NumericsError | None = None


@dataclass(frozen=True)
class Step:
    """One finished chunk: one entry per row of the batch."""

    rows: tuple[RowStep, ...]


@dataclass(frozen=True)
class _Sent:
    """A chunk in flight, and the seconds spent before it to prepare its plan."""

    named: NamedPlan
    pending: Pending
    catch_up: float


class Session:
    """An iterable of steps that ends when every row has ended.

    Attributes:
      engine: the engine; row i occupies slot i.
      prefill_seconds: seconds from the first dispatch to the first token, compilation excluded.
      prefill_stream: on a mesh with stages, the chunks of the prompts; else None.
      schedule_traces: for each row, the plans that ran, each with that row's first generated token of it.
    """

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        speculation: SpeculationConfig,
        *,
        emitted: Sequence[Sequence[int]] | None = None,
        capacity: int | None = None,
        logprobs: LogprobSpec | None = None,
        cache_dtype: str | None = None,
        report: Report = silent,
    ) -> None:
        """Checks that the session fits, and allocates no state yet.

        Args:
          model: the target.
          requests: one per row.
          speculation: settings of the drafts.
          emitted: tokens that each row already has after its prompt; None: none.
          capacity: slots per row of the cache; None: as many as needed.
          cache_dtype: "int8" or "float8_e4m3" for a target with an 8-bit full cache; None: the model's dtype.
          logprobs: the log-probabilities of emitted tokens to give; None: none.
          report: receives reports of compilation, prefill and the preparation of drafts.

        Raises:
          UserError: the requests exceed positions, capacity or memory, or ask for heads the checkpoint lacks.
        """
        config = model.config
        features = features_for(request.sampling for request in requests)
        plain = plans.with_logprobs(plans.autoregressive_plan(config, features), logprobs)
        self._emitted = [list(done) for done in emitted] if emitted is not None else [[] for _ in requests]
        texts = [len(r.prompt_ids) + len(done) for r, done in zip(requests, self._emitted, strict=True)]
        placement = Placement(model.mesh)
        slots, dtype = placement.rows(len(requests)), jax.numpy.dtype(model.dtype)
        self._row_costs = row_costs_of(config, dtype, slots // placement.sizes.get(DATA, 1), cache_dtype)
        ends = max(len(request.prompt_ids) + request.max_new_tokens for request in requests)
        budgets = self._row_costs and self._row_costs.node_budgets(max(texts), ends)
        speculative = [
            plans.with_logprobs(named, logprobs)
            for named in plans.speculative_plans(config, speculation, features, jax.default_backend(), budgets)
        ]
        if placement.mesh is not None and speculation.draft_weights is not None:
            raise UserError("draft_weights does not work on a mesh yet; leave it out", arguments=("draft_weights",))
        draft_params = None
        if speculation.draft_weights is not None:
            speculative, draft_params = with_draft_model(model, speculative, speculation.draft_weights)
        drafting = [named.plan for named in speculative]
        capacity = memory.capacity_for(
            config, requests, scratch_of(drafting), chunk_rows(max(texts)), capacity, model.rope_override
        )
        cyclic = placement.cyclic(speculation.draft_block)
        layout = Layout.of(config, dtype, capacity, features, drafting, logprobs, cache_dtype, cyclic)
        memory.check_memory(
            config,
            slots,
            capacity,
            dtype,
            advice=f"lower {', '.join(_MEMORY_ARGUMENTS)}",
            arguments=_MEMORY_ARGUMENTS,
            drafter_bytes=layout.drafter_bytes(slots, placement.sizes),
            cache_dtype=cache_dtype,
            mesh=placement.mesh,
        )
        self.engine = Engine(model, layout, slots, draft_params=draft_params, report=report)
        choices = speculative if is_adaptive(speculation.mode, speculation.schedule) else []
        rows = (
            ([*request.prompt_ids, *done], ngram_lag_of(request.sampling))
            for request, done in zip(requests, self._emitted, strict=True)
        )
        self._foresight = NgramForesight.of(choices, speculation, rows)
        self._heads = HeadsForesight(model, choices)
        most = max(request.max_new_tokens for request in requests)
        self._costs = costs_of(model, slots, cache_dtype)
        self._policy = agreed_policy(
            lambda: self._policy_for(speculation, plain, speculative, most, model), [plain, *speculative]
        )
        self._plain, self._positions = plain, max(texts)
        self._accepted: dict[NamedPlan, tuple[int, int]] = {}  # tokens and iterations
        self._requests, self._report, self._idle = requests, report, slots - len(requests)
        self._running = np.ones(len(requests), bool)
        self.prefill_seconds, self.prefill_stream = 0.0, None
        self.schedule_traces: list[list[Entry]] = [[] for _ in requests]
        self._tokens = [len(done) for done in self._emitted]  # generated ones of each row
        self._traced: NamedPlan | None = None

    def _policy_for(
        self, speculation: SpeculationConfig, plain: NamedPlan, plans: list[NamedPlan], asked: int, model: Model
    ) -> PlanPolicy:
        """The planner if measurements choose the plan; else a policy of the one plan that was asked for."""
        if not is_adaptive(speculation.mode, speculation.schedule):
            return FixedPlan(plans[0] if plans else plain)
        always = speculation.mode != "auto"
        own = self._heads.tokens_an_iteration, self._foreseen_by_ngrams
        known = self._costs, *own, head_share_of(model.config, model.params)
        trained = model.config.expected_tokens
        return Planner(plain, plans, asked, *known, trained=trained, row_costs=self._row_costs, drafts_always=always)

    def _foreseen_by_ngrams(self, named: NamedPlan) -> float | None:
        """The tokens that an iteration is expected to give by its n-grams; None for a plan without n-grams."""
        if self._foresight is None or not has_ngrams(named):
            return None
        return self._foresight.tokens_an_iteration(named.node_budget)

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self.engine.programs.compile_seconds

    @property
    def plan_reason(self) -> str | None:
        """Why the newest plan runs (`PlanPolicy.reason`)."""
        return self._policy.reason

    @property
    def state(self) -> DecodeState | None:
        """The state after the newest chunk sent, finished or not; the next chunk takes over its buffers."""
        return self.engine.state

    def close(self) -> None:
        """Abandons the session and frees the device's state."""
        self.engine.close()

    def __iter__(self) -> Iterator[Step]:
        try:
            yield from self._steps()
        finally:
            self._policy.close()
            self._keep_costs()
            self.engine.stop()

    def _steps(self) -> Iterator[Step]:
        first = self._prefill()
        step = self._step_of(first, 0.0, prefilled=True)
        if any(len(row.log) or row.error for row in step.rows):
            yield step
        if not self._running.any():
            return
        sent, clock = self._switch()
        while True:
            # Do not run ahead before the next plan is compiled and its drafts are prepared: that time would be charged
            # to the chunk. Otherwise the next chunk hides the host's work.
            ahead = self._send() if self._can_run_ahead() else None
            result = sent.pending.result()
            now = time.perf_counter()
            seconds, clock = now - clock, now
            counts = result.counts
            step = self._step_of(result, sent.catch_up + seconds)
            if counts.any():
                least = int(counts[counts > 0].min())
                self._policy.observe(sent.named, least, result.iterations, seconds, sent.catch_up)
                before = self._accepted.get(sent.named, (0, 0))
                self._accepted[sent.named] = before[0] + least, before[1] + result.iterations
                self._positions = max(self._positions, int(result.length.max()))
            running = self._running.any()
            if running and ahead is None and self._can_switch():
                ahead, clock = self._switch()  # while the caller works with the step
            if counts.any() or any(row.error for row in step.rows):
                yield step
            if not running:
                return
            if ahead is None:
                ahead, clock = self._switch()
            sent = ahead

    def _keep_costs(self) -> None:
        for named, (tokens, iterations) in self._accepted.items():
            self._costs.add_text(named, tokens, iterations)
        if leads():
            self._costs.save_later()

    def _prefill(self) -> StepResult:
        begun, compiled_before = time.perf_counter(), self.compile_seconds
        requests = [*self._requests, *[VACANT] * self._idle]
        emitted = [*self._emitted, *[()] * self._idle]
        prefill = self.engine.prefill(requests, emitted, keep_hidden=self._heads.counts)
        self.prefill_stream = prefill.stream
        pace = DevicePace(self._report)
        with phase(self._report, "prefill", prefill.total, "positions") as so_far:
            while not prefill.finished:
                prefill.advance()
                if pace.wait(prefill.newest):
                    so_far(min(prefill.done, prefill.total))
        if self._heads.counts:
            self._heads.count(prefill, self.engine.programs, len(self._requests))
        inserted = self.engine.insert(prefill)
        if isinstance(self._policy, FixedPlan) and self.engine.state is not None:
            fixed, _ = self._policy.next_plan()
            if not fixed.plan.drafter.parts and self.engine.is_compiled(fixed):
                self.engine.prepare(fixed)  # while the device works; catching up with drafts would wait for it
        result = inserted.result()
        compiling = self.compile_seconds - compiled_before
        self.prefill_seconds = time.perf_counter() - begun - compiling
        return result

    def _can_run_ahead(self) -> bool:
        return not self._policy.waiting and self.engine.is_ready(self._policy.next_plan()[0])

    def _can_switch(self) -> bool:
        """Whether the next chunk can be sent although it does not run ahead: nothing has to be compiled for it."""
        return not self._policy.busy and self.engine.is_compiled(self._policy.next_plan()[0])

    def _switch(self) -> tuple[_Sent, float]:
        """Prepares the next plan and sends its first chunk; returns it and the time at which it was sent."""
        catch_up = self._prepare()
        clock = time.perf_counter()
        return self._send(catch_up), clock

    def _prepare(self) -> float:
        """Compiles the next plan and prepares its drafts, where necessary; returns the seconds that the drafts took."""
        self._policy.attend(self.engine, self._positions)
        named, _ = self._policy.next_plan()
        if named is not self._traced:
            self._trace(named)
        before = self.compile_seconds
        catch_up = self.engine.prepare(named)
        compiling = self.compile_seconds - before
        if compiling:
            self._costs.add_ready(named, self.engine.layout.capacity, compiling)
        if compiling and self.engine.is_compiled(
            self._plain
        ):  # else measuring costs the compilation of another program
            costs, at = self._costs, self._positions
            self._policy.measure(
                self.engine, lambda engine: measure(engine, costs, self._plain, named, at, compiling, 0)
            )
            catch_up += self.engine.prepare(named)
        return catch_up

    def _send(self, catch_up: float = 0.0) -> _Sent:
        """Sends the next chunk to the device without waiting for it."""
        named, iterations = self._policy.next_plan()
        return _Sent(named, self.engine.step(named, iterations), catch_up)

    def _trace(self, named: NamedPlan) -> None:
        """Adds a plan that begins to the traces of the rows that it continues."""
        self._traced = named
        for trace, tokens, runs in zip(self.schedule_traces, self._tokens, self._running, strict=True):
            if runs:
                trace.append(trace_entry(tokens, named.mode, named.schedule, named.node_budget))

    def _step_of(self, result: StepResult, seconds: float, *, prefilled: bool = False) -> Step:
        rows = []
        for row in range(len(self._requests)):
            log = result.log(row, seconds, prefilled=prefilled)
            finish = Finish(int(result.finish[row]))
            error = None
            if finish == Finish.NOT_A_NUMBER and self._running[row]:
                error = NumericsError(int(result.length[row]) + 1)
            rows.append(RowStep(log, REASONS.get(finish), error))
            self._tokens[row] += len(log)
            self._running[row] = finish == Finish.RUNNING
            if self._foresight is not None:
                self._foresight.read(row, log.token_ids.tolist())
                if not self._running[row]:
                    self._foresight.end(row)
        return Step(tuple(rows))
