"""A run: the host drives compiled chunks, one dispatched ahead of the one it reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax.engine import capacity as memory
from tokenswift_jax.engine.adaptive import Tuner
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.prefill import chunk_rows, padded, prefill
from tokenswift_jax.request import Request, batch_of
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import features_for
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import plans
from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.speculate.quantized_drafter import with_drafter
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.step.loop import Chunk, compiled
from tokenswift_jax.step.state import EOS, LENGTH, NOT_A_NUMBER, RUNNING, DecodeState, Plan, StepInputs

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

CHUNK_TOKENS = 32  # a row's records a chunk: often enough for a reader, rare enough for the host
FINISH_NAMES = {LENGTH: "length", EOS: "eos"}
_DRAFTING = ("ngrams", "ngram_trust", "draft")  # parts of the state that a plan without such drafts leaves as they are


class NumericsError(ArithmeticError):
    """The logits of a position are not numbers.

    Attributes:
      position: index in the text (prompt included) of the token that could not be drawn.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"the logits of position {position} are not numbers (NaN); the text before it stands")
        self.position = position


@dataclass(frozen=True)
class Committed:
    """What one finished chunk added to one row of the batch.

    Attributes:
      token_ids: int32 [k].
      sources: int32 [k]: 0 drawn by the target, 1 accepted draft of heads or backbone, 2 accepted draft that the
        n-gram table alone proposed.
      offsets: int32 [k]: index within the token's iteration; -1 for the token that prefill gave.
      offered: int32 [k]: tree depth that the iteration offered, 0 in plain decoding.
      finish: "length" or "eos" once the row has finished, else None.
    """

    token_ids: np.ndarray
    sources: np.ndarray
    offsets: np.ndarray
    offered: np.ndarray
    finish: str | None


@dataclass(frozen=True)
class Step:
    """One finished chunk.

    Attributes:
      rows: one entry a row of the batch.
      seconds: wall time the chunk took, with that of catching up with its plan before it where the plan changed;
        compilation excluded; 0.0 for the step of prefill's token.
    """

    rows: tuple[Committed, ...]
    seconds: float


@dataclass(frozen=True)
class _Dispatched:
    """A chunk under way, and the seconds that catching up with its plan took before it."""

    named: NamedPlan
    chunk: Chunk
    catch_up: float


class DecodingRun:
    """An iterable of steps that ends when every row has finished.

    Attributes:
      prefill_seconds: from the first dispatch to the first token, compilation excluded.
      schedule_trace: which plan ran from which generated token on.
    """

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        speculation: SpeculationConfig,
        *,
        emitted: list[list[int]] | None = None,
        capacity: int | None = None,
        cache_dtype: str | None = None,
    ) -> None:
        """Args:
        model: the target.
        requests: one a row.
        speculation: how drafts are made.
        emitted: tokens that each row already has after its prompt; None: none.
        capacity: slots a row of the cache; None: as many as needed.
        cache_dtype: "int8" or "float8_e4m3" for a target whose full cache is in 8 bits; None: in the model's dtype.
        """
        config = model.config
        features = features_for(request.sampling for request in requests)
        self._plain = plans.autoregressive_plan(config, features)
        speculative = plans.speculative_plans(config, speculation, features, jax.default_backend())
        draft_params = None
        if speculation.draft_weights is not None:
            speculative, draft_params = with_drafter(model, speculative, speculation.draft_weights)
        adaptive = speculation.mode == "auto" or (speculation.mode == "tokenswift" and speculation.schedule == "auto")
        longest_text = max(request.max_new_tokens for request in requests)
        self._tuner = Tuner(self._plain, speculative if adaptive else [], longest_text)
        if speculative and not adaptive:
            self._tuner.current = speculative[0]
        self._requests = requests
        self._emitted = emitted or [[] for _ in requests]
        self._texts = [[*r.prompt_ids, *done] for r, done in zip(requests, self._emitted, strict=True)]
        # Verification writes its rows at the text's end, then the commit writes the accepted path there.
        scratch = max([max(named.plan.rows, named.plan.depth + 1) for named in speculative], default=1)
        prefill_rows = chunk_rows(max(map(len, self._texts)))
        self._capacity = memory.capacity_for(config, requests, scratch, prefill_rows, capacity)
        dtype = jax.tree.leaves(model.params)[0].dtype
        self._model, self._cache_dtype = model, cache_dtype
        self._ngram_slots = None
        if any(named.plan.tree and named.plan.tree.ngram_k for named in speculative):
            self._ngram_slots = speculation.ngram_slots
        self._calibrate = any(named.plan.tree and named.plan.tree.calibrated for named in speculative)
        self._draft = next((named.plan.draft for named in speculative if named.plan.draft), None)
        memory.check_memory(
            config,
            len(requests),
            self._capacity,
            dtype,
            advice="lower --max-new-tokens, --capacity, --draft-cache or --ngram-slots",
            draft_slots=self._draft.copied_slots if self._draft else 0,
            cache_dtype=cache_dtype,
            ngram_slots=self._ngram_slots or 0,
        )
        settings = sequence_params(requests, config.vocab_size)
        self._inputs = StepInputs(params=model.params, sequence=settings, draft_params=draft_params)
        self._programs = CompileCache()
        self._chunk_functions: dict[Plan, Callable] = {}
        self._state: DecodeState | None = None
        # Where a loop's condition is read by the host, as on GPUs, a call returns only once its chunk is all but done.
        self._sender = ThreadPoolExecutor(1, "tokenswift-chunks")
        self._ahead: Future[tuple[DecodeState, _Dispatched]] | None = None
        self._ready_for: NamedPlan | None = None
        self.prefill_seconds = 0.0
        self.schedule_trace: list[dict[str, Any]] = []

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far."""
        return self._programs.compile_seconds

    def close(self) -> None:
        """Abandons the run and frees the device's state."""
        self._sender.shutdown(wait=True)
        self._state = self._ahead = None  # a chunk under way holds the state after it

    @property
    def state(self) -> DecodeState | None:
        """The state after the newest chunk that was sent, finished or not; it belongs to the chunk after that."""
        return self._state if self._ahead is None else self._ahead.result()[0]

    def __iter__(self) -> Iterator[Step]:
        try:
            yield from self._steps()
        finally:
            self._sender.shutdown(wait=True)

    def _steps(self) -> Iterator[Step]:
        first = self._prefill()
        generated = max(map(len, self._emitted))
        if first is not None:
            generated += 1
            yield first
        catch_up = self._prepare(generated)
        clock = time.perf_counter()
        pending = self._dispatch(catch_up)
        while True:
            # Sent ahead, the next chunk hides the host's work; but a trial is timed alone, and a plan that must be
            # compiled or caught up with first waits, so that the delay is not taken for its chunk's pace.
            self._ahead = self._send_ahead() if self._can_run_ahead() else None
            counts = np.asarray(pending.chunk.counts)
            now = time.perf_counter()
            seconds, clock = now - clock, now
            if counts.any():
                generated += int(counts.max())
                self._tuner.observe(pending.named, int(counts[counts > 0].min()), seconds, pending.catch_up)
                yield Step(self._committed(pending.chunk, prefilled=False), pending.catch_up + seconds)
            self._check_numbers(pending.chunk)
            if (np.asarray(pending.chunk.finish) != RUNNING).all():
                return
            if self._ahead is None:
                catch_up = self._prepare(generated)
                clock = time.perf_counter()
                pending = self._dispatch(catch_up)
            else:
                self._state, pending = self._ahead.result()

    def _can_run_ahead(self) -> bool:
        return not self._tuner.trying and self._tuner.next_plan()[0] is self._ready_for

    def _prefill(self) -> Step | None:
        """Fills the state; the step of the first token, or None where tokens were already emitted."""
        begun, compiled_before = time.perf_counter(), self.compile_seconds
        model, resumed = self._model, any(self._emitted)
        # A resumed text has its newest token already: one token less is the prompt of the step that gave it.
        texts = [text[:-1] if done else text for text, done in zip(self._texts, self._emitted, strict=True)]
        state = prefill(
            self._programs,
            model.graphdef,
            model.params,
            model.config,
            texts,
            self._capacity,
            ngram_slots=self._ngram_slots,
            calibrate=self._calibrate,
            draft=self._draft,
            cache_dtype=self._cache_dtype,
        )
        self._state, chunk = self._run(self._plain.plan, state, 1)
        if resumed:
            self._state = self._resume(self._state)
        np.asarray(chunk.counts)
        compiling = self.compile_seconds - compiled_before
        self.prefill_seconds = time.perf_counter() - begun - compiling
        self._check_numbers(chunk)
        return None if resumed else Step(self._committed(chunk, prefilled=True), 0.0)

    def _resume(self, state: DecodeState) -> DecodeState:
        """The state whose roots are the newest emitted tokens, whatever the step before them drew here."""
        tokens = padded(self._texts, self._capacity)
        lengths = np.asarray([len(text) for text in self._texts], np.int32)
        full = lengths >= np.asarray(self._inputs.sequence.stop_length)
        ended = np.asarray(
            [
                done[-1:] != [] and done[-1] in r.eos_token_ids
                for r, done in zip(self._requests, self._emitted, strict=True)
            ]
        )
        finish = np.where(ended, EOS, np.where(full, LENGTH, RUNNING)).astype(np.int32)
        last_positions = penalty.last_positions(
            jnp.asarray(tokens), jnp.asarray(lengths), self._model.config.vocab_size
        )
        return replace(
            state,
            tokens=jnp.asarray(tokens),
            length=jnp.asarray(lengths - 1),
            finish=jnp.asarray(finish),
            last_positions=last_positions,
        )

    def _prepare(self, generated: int) -> float:
        """Compiles the next plan and brings the state up to it, where that is still to do; returns, when it is done,
        the seconds that the latter took."""
        named, _ = self._tuner.next_plan()
        if named is self._ready_for:
            return 0.0
        state = self._state
        assert state is not None
        self._trace(named, generated)
        seconds, compiled_before = 0.0, self.compile_seconds
        if named.plan.kind != "autoregressive":
            call = compiled("catch_up", None, named.plan), self._inputs, state
            self._programs.compile(*call)
            begun = time.perf_counter()
            state = jax.block_until_ready(self._programs.run(*call))
            seconds = time.perf_counter() - begun
        self._programs.compile(*self._chunk_call(named.plan, state, None))
        if self.compile_seconds > compiled_before:
            # What a device does at a program's first call, as loading it, is no more its chunk's time than compiling.
            state = jax.block_until_ready(self._run(named.plan, state, 0)[0])
        self._state, self._ready_for = state, named
        return seconds

    def _dispatch(self, catch_up: float = 0.0) -> _Dispatched:
        """Sends the next chunk to the device without waiting for it."""
        named, iterations = self._tuner.next_plan()
        assert self._state is not None
        assert named is self._ready_for
        self._state, chunk = self._run(named.plan, self._state, iterations)
        return _Dispatched(named, chunk, catch_up)

    def _send_ahead(self) -> Future[tuple[DecodeState, _Dispatched]]:
        """The next chunk and the state after it, sent by another thread: until its result is taken, this one leaves
        the state alone."""
        named, iterations = self._tuner.next_plan()
        state = self._state
        assert state is not None

        def send() -> tuple[DecodeState, _Dispatched]:
            after, chunk = self._run(named.plan, state, iterations)
            return after, _Dispatched(named, chunk, 0.0)

        return self._sender.submit(send)

    def _run(self, plan: Plan, state: DecodeState, iterations: int | None) -> tuple[DecodeState, Chunk]:
        after, chunk = self._programs.run(*self._chunk_call(plan, state, iterations))
        kept = {name: getattr(state, name) for name in _DRAFTING if getattr(after, name) is None}
        return replace(after, **kept), chunk

    def _chunk_call(self, plan: Plan, state: DecodeState, iterations: int | None) -> tuple:
        """What `CompileCache` takes to run a chunk of at most `iterations`."""
        function = self._chunk_functions.get(plan)
        if function is None:  # kept here: a look-up by the model's graph, to hash it, takes a fraction of a millisecond
            function = compiled("chunk", self._model.graphdef, plan, CHUNK_TOKENS + plan.depth)
            self._chunk_functions[plan] = function
        most = jnp.asarray(CHUNK_TOKENS + plan.depth if iterations is None else iterations, jnp.int32)
        # A plan is one executable, whatever the mode: it is not handed what only other plans need.
        inputs = self._inputs if plan.drafter is not None else replace(self._inputs, draft_params=None)
        read = (plan.tree and plan.tree.ngram_k, plan.tree and plan.tree.calibrated, plan.draft)
        state = replace(state, **{name: None for name, part in zip(_DRAFTING, read, strict=True) if not part})
        return function, inputs, state, most

    def _trace(self, named: NamedPlan, generated: int) -> None:
        entry = {
            "from_token": generated,
            "mode": named.mode,
            "schedule": named.schedule,
            "node_budget": named.node_budget,
        }
        self.schedule_trace.append(entry)

    def _committed(self, chunk: Chunk, *, prefilled: bool) -> tuple[Committed, ...]:
        records, counts = np.asarray(chunk.records), np.asarray(chunk.counts)
        finish = np.asarray(chunk.finish)
        rows = []
        for row, count in enumerate(counts):
            taken = records[row, :count]
            offsets = np.full(count, -1, np.int32) if prefilled else taken[:, 2]
            rows.append(Committed(taken[:, 0], taken[:, 1], offsets, taken[:, 3], FINISH_NAMES.get(int(finish[row]))))
        return tuple(rows)

    def _check_numbers(self, chunk: Chunk) -> None:
        broken = np.asarray(chunk.finish) == NOT_A_NUMBER
        if broken.any():
            raise NumericsError(int(np.asarray(chunk.length)[broken].min()) + 1)


def start(
    model: Model,
    prompts: list[list[int]],
    sampling: SamplingConfig,
    speculation: SpeculationConfig,
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    ignore_eos: bool = False,
    emitted: list[list[int]] | None = None,
    capacity: int | None = None,
    cache_dtype: str | None = None,
) -> DecodingRun:
    """A run that continues each prompt (and the tokens already `emitted` after it) up to `max_new_tokens`.

    Raises:
      UserError: the request exceeds positions, capacity or memory, or asks for heads the checkpoint lacks.
    """
    requests = batch_of(
        prompts,
        sampling,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        eos_token_ids=() if ignore_eos else tuple(model.eos_token_ids),
    )
    return DecodingRun(model, requests, speculation, emitted=emitted, capacity=capacity, cache_dtype=cache_dtype)
