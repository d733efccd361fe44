"""The engine: slots on the device that rows enter and leave. Its five verbs: prefill, insert, step, evict, prefix."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax import arrays
from tokenswift_jax.engine import compile_cache
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.engine.plan_programs import PlanPrograms
from tokenswift_jax.engine.prefill import Prefill, Prefix, padded, read_part
from tokenswift_jax.engine.step_result import Pending
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import BLOCK
from tokenswift_jax.progress_report import Report, phase, silent
from tokenswift_jax.request import Request
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.params import SequenceParams, sequence_params
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import plans, predicted_text
from tokenswift_jax.speculate.drafter import Drafter, DrafterState
from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.step.loop import Chunk
from tokenswift_jax.step.state import DecodeState, StepInputs

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

VACANT = Request((0,), SamplingConfig(temperature=0.0), 0)


class Engine:
    """The slots of one model.

    `insert`, `step` and `evict` return without waiting for the device: a thread of the engine sends their work to the
    device in the order of the calls. On GPUs the host evaluates the `while_loop` condition, so dispatch blocks until
    the chunk has almost finished. Between two chunks the caller may insert rows, evict rows and change the plan; no
    row's tokens depend on these calls.

    Attributes:
      layout: sizes and parts of the state.
      slots: number of rows in the batch.
      programs: the compiled programs and their compile time in seconds.
      placement: the devices that store the arrays and run the programs.
    """

    def __init__(
        self,
        model: Model,
        layout: Layout,
        slots: int,
        *,
        draft_params: Any = None,
        programs: CompileCache | None = None,
        report: Report = silent,
    ) -> None:
        """Allocates no state before the first row enters.

        Args:
          model: the target.
          layout: sizes and parts of the state.
          slots: number of rows in the batch.
          draft_params: parameters of the plans' draft model; None if no plan has one.
          programs: the cache that compiles and keeps executables; None: a new one.
          report: receives reports of compilation and of the preparation of drafts.
        """
        self.layout, self.slots = layout, slots
        self.programs = CompileCache(report) if programs is None else programs
        self._model, self._report = model, report
        self._plain = plans.with_logprobs(plans.autoregressive_plan(layout.config, layout.features), layout.logprobs)
        self.placement = Placement(model.mesh)
        vacant = self._settings([VACANT] * slots)
        self._inputs = StepInputs(params=model.params, sequence=vacant, draft_params=draft_params)
        self._state: DecodeState | None = None
        self._ready: NamedPlan | None = None  # the plan that `step` may run
        self._known: set[Drafter] = set()  # drafters whose parts have been up to date since rows entered
        # The drafter whose parts of the state are up to date with the rows; the sender's thread alone knows it.
        self._drafted: Drafter | None = None
        self._plans = PlanPrograms(model, layout, self.placement, self.programs)
        x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
        entered = x64, self.placement
        self._sender = ThreadPoolExecutor(1, "tokenswift-engine", initializer=_enter, initargs=entered)
        self._stopped = False

    # The five verbs

    def prefill(
        self,
        requests: Sequence[Request],
        emitted: Sequence[Sequence[int]] | None = None,
        *,
        prefix: Prefix | None = None,
        capacity: int | None = None,
        keep_hidden: bool = False,
    ) -> Prefill:
        """Begins a prefill of prompts and the tokens already emitted after them; `Prefill.advance` sends one chunk.

        If the engine is empty and there is one request per slot, `insert` in order takes over the cache without a copy.

        Args:
          requests: one per row.
          emitted: tokens that each row already has after its prompt; None: none.
          prefix: the K/V of the first tokens of a single request; None: none are known.
          capacity: slots per row of the prefill's own cache, at least as many as it needs; each capacity has its own
            programs. None: as many as it needs, rounded up.
          keep_hidden: keep the hidden states of the prompt's end (`Prefill`).

        Raises:
          UserError, ValueError: a request does not fit the layout (`Layout.check`).
        """
        for request in requests:
            self.layout.check(request)
        emitted = [()] * len(requests) if emitted is None else emitted
        if self._state is None and len(requests) == self.slots:
            capacity = self.layout.capacity
        own = self._model, self.programs, self.layout
        return Prefill(*own, requests, emitted, capacity, prefix, keep_hidden=keep_hidden)

    def insert(self, prefill: Prefill, slots: Sequence[int] | None = None) -> Pending:
        """Puts the prefilled rows into `slots`, in order; None: the first ones.

        The result has the rows of the prefill, and one token for each row that had no emitted tokens.
        """
        while not prefill.finished:
            prefill.advance()
        slots = list(range(len(prefill.requests)) if slots is None else slots)
        settings = self._settings(prefill.requests)
        self._known.clear()
        return Pending(self._sender.submit(self._insert, prefill, slots, settings))

    def step(self, named: NamedPlan, iterations: int | None = None) -> Pending:
        """Sends a chunk of iterations (None: until a row has CHUNK_TOKENS records); call `prepare` first."""
        assert self._ready is named, "the plan is not prepared"
        return Pending(self._sender.submit(self._step, named, iterations))

    def evict(self, slots: Sequence[int]) -> None:
        """Ends the rows in some slots; these slots are vacant from the next chunk on."""
        gone = np.zeros(self.slots, bool)
        gone[list(slots)] = True
        self._sender.submit(self._replace, lambda state: _evict(state, jnp.asarray(gone)))

    def prefix(self, slot: int, token_ids: Sequence[int]) -> Prefix:
        """The K/V of `token_ids`, which must be the first tokens that the slot has committed.

        Raises:
          UserError: devices share the cache's length (`Layout.check_parts`).
        """
        reading = [self.part(slot, number) for number in range(-(-len(token_ids) // BLOCK))]
        return Prefix(list(token_ids), [each.result() for each in reading])

    # Support for the verbs

    def part(self, slot: int, number: int) -> Future[StoredKV]:
        """The K/V of a slot's positions from `number` * `BLOCK` on, as they are after the work sent so far."""
        self.layout.check_parts()

        def read() -> StoredKV:
            assert self._state is not None
            place = jnp.asarray(slot, jnp.int32), jnp.asarray(number * BLOCK, jnp.int32)
            return self.programs.run(read_part, self._state.cache, *place, name="a part of a prefix")

        return self._sender.submit(read)

    def prepare(self, named: NamedPlan) -> float:
        """Compiles a plan and brings the tables and caches of its drafts up to date with the rows, where necessary.

        A table that was up to date earlier in the text lacks little: the next chunk begins with that, and this call
        does not wait.

        Returns:
          Seconds that the tables and caches took.
        """
        if named is self._ready:
            return 0.0
        seconds, before, drafter = 0.0, self.programs.compile_seconds, named.plan.drafter
        if drafter.parts and (drafter not in self._known or any(part.rebuilt for part in drafter.parts)):
            seconds = self._sender.submit(self._catch_up, named).result()
            self._known.add(drafter)
        if not self._plans.is_prepared(named):
            self._plans.prepare(named, self._entered(), self._inputs)
        if self.programs.compile_seconds > before:
            # Run zero iterations first: loading the program must not count as decode time.
            self._sender.submit(self._step, named, 0).result()
        self._ready = named
        return seconds

    def is_compiled(self, named: NamedPlan) -> bool:
        """Whether this process has the programs of a plan."""
        if self._plans.is_prepared(named):
            return True
        # Once: every text asks for each plan, and the keys of one plan take 0.4 ms.
        place = "keys", named.plan, self.layout, self.slots, jnp.result_type(float)
        alone = self._inputs.draft_params is None  # another draft model has other parameters

        def find() -> list[tuple]:
            return self._plans.keys(named, self._entered(), self._inputs)

        keys = self._model.once(place, find) if alone else find()
        return all(map(compile_cache.has, keys))

    def compiling(self, named: NamedPlan) -> Callable[[Callable[[], bool]], float]:
        """A function, for any thread, that compiles the programs of a plan and returns the seconds it took.

        It stops before the next program once the function that it is called with returns True. `programs` does not
        count these seconds: no caller of the engine waits for them.
        """
        return self._plans.compiling(named, self._entered(), self._inputs)

    def frozen_seconds(self, named: NamedPlan, iterations: int) -> float:
        """Seconds of so many iterations of a plan on frozen rows: they do all their work and commit nothing.

        `prepare` must have named the plan since the newest chunk: frozen iterations of other plans change nothing.
        """
        return self._sender.submit(self._frozen_seconds, named, iterations).result()

    def arrays(self) -> dict[str, Any]:
        """The parameters, the settings of the rows and the shapes of the state."""
        state = jax.eval_shape(lambda: self.layout.vacant(self.slots))
        return {"parameters": self._inputs.params, "settings": self._inputs.sequence, "state": state}

    def is_ready(self, named: NamedPlan) -> bool:
        """Whether `step` may run this plan without `prepare`."""
        return named is self._ready

    @property
    def state(self) -> DecodeState | None:
        """The state after all the work sent so far; the next chunk takes over its buffers."""
        return self._state if self._stopped else self._sender.submit(lambda: self._state).result()

    def stop(self) -> None:
        """Waits for the work sent so far and refuses new work; the state remains."""
        self._sender.shutdown(wait=True)
        self._stopped = True

    def close(self) -> None:
        """Waits for the work sent so far and frees the device's state."""
        self.stop()
        self._state = None

    # The sender's thread runs these, one at a time

    def _step(self, named: NamedPlan, iterations: int | None) -> Chunk:
        assert self._state is not None
        drafter = named.plan.drafter
        if drafter.parts and self._drafted != drafter:
            self._state = self._plans.catch_up(drafter, self._state, self._inputs.sequence)
        self._drafted = drafter
        self._state, chunk = self._plans.run(named, self._state, self._inputs, iterations)
        return chunk

    def _frozen_seconds(self, named: NamedPlan, iterations: int) -> float:
        assert self._state is not None
        finish = self._state.finish
        frozen = replace(self._state, finish=self.placement.rows_of(np.full(finish.shape, Finish.VACANT, np.int32)))
        jax.block_until_ready(frozen)
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(self._plans.run(named, frozen, self._inputs, -iterations))
        seconds = time.perf_counter() - begun
        self._state = replace(state, finish=finish)
        return seconds

    def _insert(self, prefill: Prefill, slots: list[int], settings: SequenceParams) -> Chunk:
        inputs, state = replace(self._inputs, sequence=settings), prefill.state()
        arrays.check_shapes(state=state, settings=settings)
        state, chunk = self._plans.run(self._plain, state, inputs, 1, prepared=False)
        if any(prefill.emitted):
            state = self._resumed(prefill, state)
            chunk = replace(chunk, counts=jnp.where(jnp.asarray([bool(e) for e in prefill.emitted]), 0, chunk.counts))
        predicted = [request.predicted_ids for request in prefill.requests]
        state = replace(state, drafter=self._predicted(state.drafter, predicted))
        adopted = self._state is None and slots == list(range(self.slots)) and prefill.capacity == self.layout.capacity
        if adopted:
            self._state, self._inputs, self._ready, self._drafted = state, inputs, None, None
            return chunk
        if self._drafted is not None and self._drafted.parts:
            state = self._plans.catch_up(self._drafted, state, settings, prepared=False)
        if self._state is None:
            self._state = self.placement.make(Layout.vacant, self.layout, self.slots)
        both = self._state, self._inputs.sequence
        for row, slot in enumerate(slots):
            one = (state, settings)
            both = self.programs.run(_move_row, both, one, jnp.int32(row), jnp.int32(slot), name="insertion")
        self._state, sequence = both
        self._inputs = replace(self._inputs, sequence=sequence)
        return chunk

    def _predicted(self, parts: DrafterState, predictions: Sequence[Sequence[int]]) -> DrafterState:
        """The parts of new rows, whose n-gram tables also contain the 4-grams of the rows' predictions."""
        own = list(parts)
        for place in predicted_text.tables(self.layout.parts):
            for piece in map(self.placement.rows_of, predicted_text.pieces(predictions)):
                own[place] = self.programs.run(predicted_text.enter, own[place], piece, name="predictions")
        return tuple(own)

    def _replace(self, change: Callable[[DecodeState], DecodeState]) -> None:
        if self._state is not None:
            self._state = change(self._state)

    def _catch_up(self, named: NamedPlan) -> float:
        assert self._state is not None
        if self._drafted == named.plan.drafter:
            return 0.0
        settings = self._inputs.sequence
        self._plans.prepare_catch_up(named, self._state, settings)
        begun = time.perf_counter()
        with phase(self._report, f"preparing the drafts of {named.label}"):
            self._state = self._plans.catch_up(named.plan.drafter, self._state, settings)
            self._drafted = named.plan.drafter
            jax.block_until_ready(self._state)
        return time.perf_counter() - begun

    def _entered(self) -> DecodeState:
        """The state of rows that have entered."""
        state = self.state
        assert state is not None, "no row has entered"
        return state

    def _settings(self, requests: Sequence[Request]) -> SequenceParams:
        return self.placement.put(sequence_params(requests, self.layout.config.padded_vocab))

    def _resumed(self, prefill: Prefill, state: DecodeState) -> DecodeState:
        """The state whose roots are the newest emitted tokens; it discards the draws of the step before them."""
        texts, drawn = prefill.texts, self.placement.read(state.tokens)
        tokens = padded(texts, prefill.capacity)
        lengths = np.asarray([len(text) for text in texts], np.int32)
        finish, rooted = self.placement.read(state.finish).copy(), self.placement.read(state.length)
        for row, (request, done) in enumerate(zip(prefill.requests, prefill.emitted, strict=True)):
            if not done:
                lengths[row] = int(rooted[row]) + 1
                tokens[row] = drawn[row]
            elif done[-1] in request.eos_token_ids:
                finish[row] = Finish.EOS
            else:
                finish[row] = Finish.LENGTH if len(done) >= request.max_new_tokens else Finish.RUNNING
        vocab = self.layout.config.padded_vocab
        resumed = replace(
            state,
            tokens=jnp.asarray(tokens),
            length=jnp.asarray(lengths - 1),
            finish=jnp.asarray(finish),
            last_positions=penalty.last_positions(jnp.asarray(tokens), jnp.asarray(lengths), vocab),
        )
        return self.placement.put(resumed)


def _enter(x64: bool, placement: Placement) -> None:
    """Gives a new thread its maker's settings: `jax.enable_x64` and `jax.set_mesh` change the calling thread alone."""
    jax.enable_x64(x64).__enter__()
    placement.enter()


@partial(jax.jit, donate_argnums=0)
def _move_row(whole: Any, rows: Any, row: jax.Array, slot: jax.Array) -> Any:
    return tuple(
        arrays.put_row(tree, arrays.take_row(source, row), slot) for tree, source in zip(whole, rows, strict=True)
    )


@partial(jax.jit, donate_argnums=0)
def _evict(state: DecodeState, gone: jax.Array) -> DecodeState:
    return replace(state, finish=jnp.where(gone, jnp.int32(Finish.VACANT), state.finish))
