"""The scheduler: one thread that owns the device and gives every run its turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from tokenswift_jax.errors import NumericsError, UserError, WriteError
from tokenswift_jax.finish import CANCELLED, FAILED, INTERRUPTED, Finish
from tokenswift_jax.request import check_drawable
from tokenswift_jax.serve.busy import BusyError
from tokenswift_jax.serve.fair_queue import FairQueue
from tokenswift_jax.serve.flights import Flights
from tokenswift_jax.serve.observer import Observer
from tokenswift_jax.serve.pace import Pace
from tokenswift_jax.serve.pool import Pool
from tokenswift_jax.serve.pool_choice import PoolChoice
from tokenswift_jax.serve.run import Run, RunState, Update
from tokenswift_jax.serve.tenancy import Flight
from tokenswift_jax.token_log import concatenate

_SHORT_CHUNK = 8  # iterations of a chunk beside a prompt or a text near its end: they come sooner
_PROMPT_CHUNKS = 2  # chunks of a prompt between two looks at the queue while nothing decodes
_NOTHING = concatenate([])
_T = TypeVar("_T")

Publish = Callable[[Run, Update], None]


class Scheduler:
    """Admits runs to pools, lets prompts and chunks take turns, and publishes the results.

    The tokens of a run depend on its request alone: not on the pool, the slot, its neighbours, pauses or restarts.

    Every method may be called from any thread. `publish` runs on the scheduler's thread, once for each update of a run,
    in order, after its journal has the tokens.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        publish: Publish,
        *,
        max_queue: int = 64,
        observer: Observer | None = None,
    ) -> None:
        """Takes pools of different lengths; `start` compiles their programs.

        Args:
          pools: the slots.
          publish: receives every update.
          max_queue: the most waiting runs.
          observer: receives events for metrics.
        """
        self.pools = sorted(pools, key=lambda pool: (pool.size.length, pool.size.slots))
        self.max_queue = max_queue
        self.queue = FairQueue()
        self.pace = Pace()
        self._publish, self._observer = publish, observer or Observer()
        self._places: dict[Run, Pool] = {}  # admitted runs
        self._choice = PoolChoice(self.pools, self.queue, self._places)
        self._newest: Pool | None = None  # the pool of the newest result
        self._lock = threading.Lock()  # guards the queue and the commands
        self._wake = threading.Condition(self._lock)
        self._flights = Flights(self._wake)
        self._called = False  # a run or a command has come since the last look
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self.error: str | None = None
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="tokenswift-scheduler", daemon=True)

    # Calls from other threads

    def start(self) -> None:
        """Starts the thread, which first compiles every program; `ready` is set after that."""
        self._thread.start()

    def check(self, run: Run) -> None:
        """Raises UserError for a run that no slot has room for, or whose settings leave nothing to draw."""
        check_drawable(run.request, self.pools[-1].engine.layout.config.vocab_size)
        if not self.pools[-1].fits(run.request):
            prompt, new = len(run.request.prompt_ids), run.request.max_new_tokens
            raise UserError(
                f"prompt ({prompt} tokens) + max_new_tokens ({new}) is above {self.pools[-1].size.length}, the longest "
                "text that this server holds; ask for less",
                arguments=("max_new_tokens",),
            )

    def check_queue(self) -> None:
        """Raises BusyError unless the queue takes one more run."""
        with self._lock:
            self._check_queue(urgent=False)

    def submit(self, run: Run, *, urgent: bool = False) -> None:
        """Queues a run, new or paused; an `urgent` one enters a full queue too.

        Raises:
          UserError: no slot has room for it.
          BusyError: the queue is full, or the scheduler stops.
        """
        self.check(run)
        with self._lock:
            self._check_queue(urgent)
            run.begin_to_wait()
            self.queue.push(run)
            self._call_thread()

    def cancel(self, run: Run) -> None:
        """Ends a run wherever it is, within one chunk."""
        self._command(lambda: self._end(run, RunState.CANCELLED, CANCELLED))

    def pause(self, run: Run) -> None:
        """Takes a run off the device within one chunk; `submit` lets it go on to the same tokens."""
        self._command(lambda: self._pause(run))

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Runs a function on the device's thread, between two turns."""
        future: Future[_T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._command(run)
        return future

    def position(self, run: Run) -> int | None:
        """The number of waiting runs before this one; None if it does not wait."""
        with self._lock:
            return next((place for place, other in enumerate(self.queue.order()) if other is run), None)

    def wait_seconds(self, run: Run) -> float | None:
        """An estimate of the seconds until a waiting run begins; None where nothing is known."""
        with self._lock:
            return self.pace.until(run, self.queue.order(), self._places, self.slots)

    @property
    def slots(self) -> int:
        """Slots of all pools."""
        return sum(pool.size.slots for pool in self.pools)

    @property
    def counts(self) -> dict[str, int]:
        """The number of runs that wait, enter a cache, and decode."""
        with self._lock:  # on its way from the queue to a pool, a run has a place and is in neither
            waiting, placed = len(self.queue), len(self._places)
        running = sum(len(pool.tenants) for pool in self.pools)
        return {"waiting": waiting, "prefill": max(placed - running, 0), "running": running}

    def stop(self, timeout: float | None = None) -> None:
        """Admits no more runs, finishes the chunks in flight, and ends the runs without a journal; a restart resumes
        the others."""
        with self._lock:
            self._stopping = True
            self._call_thread()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # The thread

    def _main(self) -> None:
        try:
            for pool in self.pools:
                pool.warm_up(lambda: self._stopping)
            if not self._stopping:
                self.ready.set()
            while not self._stopping:
                if not self.turn():
                    self._sleep()
            self._interrupt()
        except BaseException as error:  # a fault of the device or of this program: nobody waits for an answer
            self.error = f"{type(error).__name__}: {error}"
            self._fail_all()
            raise
        finally:
            self.ready.clear()
            for pool in self.pools:
                pool.close()

    def turn(self) -> bool:
        """One look at the queue, one chunk of each prompt, one chunk of each pool, one result; the thread's work.

        Returns whether there was anything to do.
        """
        with self._lock:
            self._called = False
        self._obey()
        decoding = any(pool.tenants for pool in self.pools)
        for pool in sorted(self.pools, key=lambda pool: not pool.ends_soon):
            self._gather(pool)
            self._admit(pool)
            self._advance(pool, decoding)
            others = [each.run for other in self.pools if other is not pool for each in other.tenants.values()]
            if pool.may_step(self._flights.of(pool), beside=bool(others)) and not self._flights.gives_way(pool):
                hurry = any(run.ends_soon for run in others) or any(other.coming for other in self.pools)
                self._flights.add(pool.step(_SHORT_CHUNK if hurry else None))
        if len(self._flights):
            flight = self._flights.next(lambda: self._called)
            if flight is not None:
                self._receive(flight)
            return True
        return any(pool.coming for pool in self.pools)

    def _sleep(self) -> None:
        self.pace.idle()
        with self._lock:
            while not (self._commands or self._stopping or len(self.queue)):
                self._wake.wait()

    def _obey(self) -> None:
        while True:
            with self._lock:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command()

    def _admit(self, pool: Pool) -> None:
        """Begins the prompts that a pool has slots and memory for."""
        while pool.vacant:
            with self._lock:
                run = self.queue.first(self._choice.wanted_by(pool))
                if run is None:
                    return
                run.state = RunState.PREFILL
                self._places[run] = pool
            self._observer.admitted(run)
            self._begin(run, pool)

    def _begin(self, run: Run, pool: Pool, *, moved: bool = False) -> None:
        try:
            cached = pool.begin(run)
        except UserError as error:
            self._end(run, RunState.FAILED, FAILED, str(error))
            return
        if not moved:  # a run that moves takes over K/V that it has computed itself
            run.cached = cached
            self._observer.entering(run)

    def _gather(self, pool: Pool) -> None:
        """Lets runs that began alone join the others in a wider pool, where their prompt and tokens enter once more.

        Without it, two pools decode in turns until such a run ends. A run moves to wider pools alone, and past the
        queue: from the queue, it could enter the pool that it left.
        """
        for run in [tenancy.run for tenancy in pool.tenants.values()]:
            with self._lock:
                wider = self._choice.wider(run, pool)
            if wider is not None and wider.may_begin(run):
                pool.leave(run)
                with self._lock:
                    run.state, self._places[run] = RunState.PREFILL, wider
                self._begin(run, wider, moved=True)

    def _advance(self, pool: Pool, decoding: bool) -> None:
        """Sends chunks of prompts, fewer while texts decode, and inserts the prompts that are complete."""
        for _ in range(1 if decoding else _PROMPT_CHUNKS):
            for run in [run for run, prefill in pool.coming if not prefill.finished]:
                positions = pool.advance()
                self.queue.charge(run.owner, positions)
                self._observer.prefilled(positions)
        if not decoding:
            pool.wait_for_prompts()
        for flight in pool.arrived():
            flight.rows[0].run.state = RunState.RUNNING
            self._flights.add(flight)

    def _receive(self, flight: Flight) -> None:
        """Waits for a result and gives every run its tokens."""
        result = flight.pending.result()
        seconds = self.pace.took(int(result.counts.sum()))
        alone = self._newest is flight.pool and not any(pool.coming for pool in self.pools)
        if self._newest is flight.pool and not flight.inserted:  # nothing else ran meanwhile
            flight.pool.took(seconds, result.iterations)
        self._newest = flight.pool
        since = time.perf_counter() - flight.sent
        flight.pool.learn(flight, result, min(seconds or since, since) if alone else None)
        # Metrics come before the runs, so that a caller who sees the end of a run finds it in them.
        self._observer.stepped(flight, result)
        for row, tenancy in flight.rows.items():
            if not tenancy.active:
                continue
            run = tenancy.run
            log = result.log(row, seconds, prefilled=flight.inserted)
            if len(log):
                self._emit(run, log)
            if tenancy.active and result.finish[row] == Finish.NOT_A_NUMBER:
                error = NumericsError(int(result.length[row]) + 1)
                self._end(run, RunState.FAILED, FAILED, str(error))
            if tenancy.active:
                flight.pool.keep(tenancy, int(result.length[row]))

    def _emit(self, run: Run, log: Any) -> None:
        try:
            update = run.take(log)
        except WriteError as error:
            self._end(run, RunState.FAILED, FAILED, str(error))
            return
        self.queue.charge(run.owner, len(update.log))
        if run.first_token is None:
            run.first_token = run.clock.seconds
            self._observer.first_token(run)
        if update.finish is None and run.looping:
            self._pause(run, update)
        elif update.finish is None:
            self._publish(run, update)
        else:
            self._end(run, RunState.FINISHED, update.finish, last=update)

    def _end(
        self, run: Run, state: RunState, finish: str, error: str | None = None, last: Update | None = None
    ) -> None:
        """Ends a run: the only place that does."""
        if run.state.ended:
            return
        self._leave(run)
        run.halt(state, finish, error)
        last = Update(_NOTHING, run.end(finish)) if last is None else last
        if run.journal is not None:
            run.journal.close()
        self._observer.ended(run)
        self._publish(run, replace(last, state=state, finish=finish, error=error))

    def _pause(self, run: Run, last: Update | None = None) -> None:
        if run.state.ended or run.state is RunState.PAUSED:
            return
        self._leave(run)
        run.halt(RunState.PAUSED)
        self._publish(run, replace(Update(_NOTHING) if last is None else last, state=RunState.PAUSED))

    def _leave(self, run: Run) -> None:
        """Takes a run out of the queue or off its pool."""
        with self._lock:
            self.queue.remove(run)
            pool = self._places.pop(run, None)
            if pool is not None:
                self.queue.left(run.owner)
        if pool is not None:
            pool.leave(run)

    def _interrupt(self) -> None:
        """Receives what is in flight, then ends the runs without a journal; those with one go on after a restart."""
        for flight in self._flights.drain():
            self._receive(flight)
        self._obey()
        for run in self._present():
            if run.journal is None:
                self._end(run, RunState.CANCELLED, INTERRUPTED)
            else:
                self._leave(run)
                run.journal.close()
                self._publish(run, Update(_NOTHING, (), run.state, INTERRUPTED))

    def _fail_all(self) -> None:
        """Ends every run with an error; one with a journal goes on after a restart."""
        for run in self._present():
            with self._lock:
                self.queue.remove(run)
            if run.journal is not None:
                run.journal.close()
                self._publish(run, Update(_NOTHING, (), run.state, INTERRUPTED))
                continue
            run.state, run.finish, run.error = RunState.FAILED, FAILED, "the engine stopped; see the server's log"
            self._publish(run, Update(_NOTHING, (), run.state, run.finish, run.error))
        self._obey()

    def _present(self) -> list[Run]:
        with self._lock:
            return [*self._places, *self.queue.order()]

    def _check_queue(self, urgent: bool) -> None:
        if self._stopping or self.error is not None:
            raise BusyError("the server is going down", 30, unavailable=True)
        if len(self.queue) >= self.max_queue and not urgent:
            after = self.pace.retry_after(self._places, self.slots)
            raise BusyError(f"{self.max_queue} requests wait, the most that this server queues", after)

    def _command(self, command: Callable[[], None]) -> None:
        with self._lock:
            self._commands.append(command)
            self._call_thread()

    def _call_thread(self) -> None:
        """Has the thread look at the queue and the commands, for a caller that has the lock."""
        self._called = True
        self._wake.notify()
