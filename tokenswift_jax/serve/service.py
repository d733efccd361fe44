"""The service behind every surface: it makes runs, hands out their updates, and keeps those that outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenswift_jax.errors import UserError, WriteError
from tokenswift_jax.finish import CANCELLED, INTERRUPTED
from tokenswift_jax.request import Request
from tokenswift_jax.serve.busy import BusyError
from tokenswift_jax.serve.channel import Channel
from tokenswift_jax.serve.delivery import Delivery
from tokenswift_jax.serve.description import Description
from tokenswift_jax.serve.limits import Limits
from tokenswift_jax.serve.metrics import Metrics
from tokenswift_jax.serve.pool import Pool
from tokenswift_jax.serve.run import Run, RunState, Update, new_id
from tokenswift_jax.serve.run_store import RunStore, StoredRun, UnreadableError, described
from tokenswift_jax.serve.scheduler import Scheduler
from tokenswift_jax.token_log import TokenLog, concatenate

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

logger = logging.getLogger("tokenswift_jax.serve")
_REMEMBERED = 32  # ended runs whose updates stay in memory; others are read from the folder again
_STOP_SECONDS = 20.0  # for the chunks in flight, or for a compilation to end
_T = TypeVar("_T")


class Service:
    """Runs of one model. Its methods belong to the event loop's thread, except where they say otherwise.

    Attributes:
      model, name: the target, and its name in requests and answers.
      limits: the most that a request may ask for.
      scheduler, store, metrics: its parts; `store` is None where nothing outlives the server.
      fingerprint: identifies the software and the checkpoint in answers.
    """

    def __init__(
        self,
        model: Model,
        pools: Sequence[Pool],
        *,
        name: str,
        state_dir: Path | None,
        limits: Limits | None = None,
        max_queue: int = 64,
        metrics: Metrics | None = None,
    ) -> None:
        """Checks the folder; `start` compiles and resumes.

        Raises:
          UserError: the folder cannot be used.
        """
        self.model, self.name = model, name
        self.limits = Limits() if limits is None else limits
        self.metrics = Metrics(name) if metrics is None else metrics
        self.scheduler = Scheduler(pools, self._publish, max_queue=max_queue, observer=self.metrics)
        self.metrics.watch(self.scheduler)
        self.store = None if state_dir is None else RunStore(state_dir / "runs", model)
        self.created = int(time.time())
        self.fingerprint = f"fp_{secrets.token_hex(5)}" if self.store is None else f"fp_{self.store.fingerprint[:10]}"
        self._channels: dict[str, Channel] = {}
        self._stored: OrderedDict[str, StoredRun] = OrderedDict()
        self._delivery = Delivery(self._deliver)
        self._workers = ThreadPoolExecutor(2, "tokenswift-worker")  # tokenisation, files
        self._scoring = ThreadPoolExecutor(1, "tokenswift-scoring")  # beside the scheduler: it compiles by length
        self._loading = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False

    @property
    def max_length(self) -> int:
        """Positions of the longest text that a slot holds, prompt included."""
        return self.scheduler.pools[-1].size.length

    @property
    def drafts_ngrams(self) -> bool:
        """Whether drafts may come from n-grams, and so from a predicted text."""
        return any(pool.drafts_ngrams for pool in self.scheduler.pools)

    @property
    def ready(self) -> bool:
        """Whether every program is compiled and requests are admitted."""
        return self.scheduler.ready.is_set() and not self._draining

    def start(self) -> None:
        """Starts the scheduler, and the background runs that an earlier server left."""
        self._loop = loop = asyncio.get_running_loop()
        self._delivery.start(loop)
        self.scheduler.start()
        self._resuming = loop.create_task(self._resume())

    def drain(self) -> None:
        """Admits no more, and ends the streams once the chunks in flight are stored. Any thread may call it."""
        if not self._draining:
            self._draining = True
            threading.Thread(target=self._go_down, name="tokenswift-drain", daemon=True).start()

    async def stop(self) -> None:
        """Drains, and waits for it."""
        self.drain()
        await asyncio.to_thread(self.scheduler.stop, _STOP_SECONDS)
        for stored in self._stored.values():  # those of paused runs; another server may take them over now
            if stored.run.journal is not None:
                stored.run.journal.close()
        self._workers.shutdown(wait=False)
        self._scoring.shutdown(wait=False)

    async def work(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Runs host work beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def score(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Runs teacher-forced work on the device, one call at a time, beside the scheduler."""
        return await asyncio.get_running_loop().run_in_executor(self._scoring, function, *arguments)

    @contextlib.asynccontextmanager
    async def runs(
        self,
        requests: Sequence[Request],
        owner: str,
        *,
        logprobs: bool = False,
        kind: str = "run",
        salt: str = "",
    ) -> AsyncIterator[list[Channel]]:
        """Runs that live as long as the block: at its end, those that have not ended are cancelled.

        Raises:
          UserError: one does not fit any slot.
          BusyError: the queue is full. A queue with one free place takes all runs of a request, however many.
        """
        self._check_ready()
        tokenizer = self.model.tokenizer
        made = [Run(request, owner, tokenizer, logprobs, id=new_id(kind), salt=salt) for request in requests]
        for run in made:
            self.scheduler.check(run)
        channels = [Channel(run) for run in made]
        queued: list[Run] = []
        try:
            for run, channel in zip(made, channels, strict=True):
                self._channels[run.id] = channel
                self.scheduler.submit(run, urgent=bool(queued))
                queued.append(run)
            yield channels
        finally:
            for run in made:
                self._channels.pop(run.id, None)
            for run in queued:  # one that was refused has no end to count
                if not run.state.ended:
                    self.scheduler.cancel(run)

    async def create(
        self,
        request: Request,
        owner: str,
        details: dict[str, Any],
        *,
        kind: str = "run",
        background: bool = True,
        ignore_eos: bool,
        begun: TokenLog | None = None,
    ) -> Channel:
        """Begins a run that the folder keeps; `begun` are the tokens that a branch has from the start.

        Raises:
          UserError, BusyError: as `runs`.
          WriteError: the folder cannot be written.
        """
        self._check_ready()
        assert self.store is not None, "there is no folder"
        store = self.store
        run_id = new_id(kind)
        run = Run(request, owner, self.model.tokenizer, id=run_id, **described(details, run_id))
        self.scheduler.check(run)
        stored = StoredRun(run, background, details)
        await self.work(lambda: store.create(stored, ignore_eos=ignore_eos, begun=begun))
        channel = self._remember(stored)
        try:
            self.scheduler.submit(run)
        except BusyError:
            self._channels.pop(run.id)
            self._stored.pop(run.id)
            await self.work(store.delete, run)
            raise
        return channel

    async def find(self, run_id: str, owner: str) -> tuple[StoredRun, Channel] | None:
        """A kept run of an owner, from memory or from the folder; None if there is none.

        Raises:
          UnreadableError: there is one, and its tokens cannot be read here.
        """
        try:
            stored = await self._loaded(run_id)
        except UnreadableError as error:
            if error.description.owner == owner:
                raise
            return None
        if stored is None or stored.run.owner != owner:
            return None
        channel = self._channels[run_id]
        while stored.run.state.ended and not channel.ended:  # the last update is on its way from the scheduler
            await channel.changed()
        return stored, channel

    def known(self, run_id: str) -> StoredRun | None:
        """A kept run that is in memory."""
        return self._stored.get(run_id)

    async def paused(self, stored: StoredRun, channel: Channel) -> None:
        """Takes a run off the device, and waits until it has paused or ended."""
        before = len(channel.updates)
        self.scheduler.pause(stored.run)
        # A run that was resumed has the update of an earlier pause until its next token comes.
        while stored.run.state is not RunState.PAUSED and not channel.ended:
            if any(update.state is RunState.PAUSED for update in channel.updates[before:]):
                return  # another caller has let it go on already
            await channel.changed()

    async def resumed(self, stored: StoredRun) -> None:
        """Submits a paused run.

        Raises:
          BusyError: the queue is full; the run stays paused.
        """
        self.scheduler.submit(stored.run)
        stored.pass_loop()
        if self.store is not None:
            await self.work(self.store.save, stored)

    async def listed(self, owner: str) -> list[Description]:
        """The descriptions of the kept runs of an owner, the newest first."""
        return [] if self.store is None else await self.work(self.store.listed, owner)

    async def reopened(self, stored: StoredRun, max_new_tokens: int) -> Channel | None:
        """Lets a run that has ended or paused go on to a larger limit; None: another caller let it go on or removed it.

        Raises:
          UserError, BusyError: as `runs`; the run stays as it is.
          WriteError: the folder cannot be written.
        """
        self._check_ready()
        assert self.store is not None, "there is no folder"
        run_id, store = stored.run.id, self.store
        longer = replace(stored.run.request, max_new_tokens=max_new_tokens)
        self.scheduler.check(Run(longer))
        self.scheduler.check_queue()
        async with self._loading:
            if not (stored.run.state.ended or stored.run.state is RunState.PAUSED):
                return None  # while this call waited; the journal is the scheduler's now
            if not await self.work(store.has, run_id):
                return None
            self._stored.pop(run_id, None)
            left = self._channels.pop(run_id, None)
            if left is not None and not left.ended:
                left.push([Update(concatenate([]), (), RunState.QUEUED, "continued")])
            await self.work(store.reopen, stored, max_new_tokens)
            found = await self._read(run_id)
            assert found is not None, "its journal was read before"
            if found.run.state is RunState.QUEUED:
                self.scheduler.submit(found.run, urgent=True)
            return self._channels[run_id]

    async def delete(self, stored: StoredRun) -> None:
        """Ends a kept run and removes everything about it, also one that another caller lets go on meanwhile."""
        run_id, newest = stored.run.id, stored
        while True:
            channel = self._channels.get(run_id)
            if channel is not None and not newest.run.state.ended:
                self.scheduler.cancel(newest.run)
                await channel.finished()
            async with self._loading:  # nobody reads or reopens it while its files go
                newest, channel = self._stored.get(run_id, newest), self._channels.get(run_id)
                if channel is None or channel.ended or newest.run.state.ended:
                    await self._removed(newest.run)
                    return

    async def delete_unreadable(self, run_id: str) -> None:
        """Removes the folder of a run that cannot be read here."""
        assert self.store is not None, "there is no folder"
        async with self._loading:
            await self.work(self.store.remove, run_id)

    async def _removed(self, run: Run) -> None:
        self._stored.pop(run.id, None)
        self._channels.pop(run.id, None)
        prefixes = self.scheduler.pools[0].prefixes
        if prefixes is not None:
            await self.work(prefixes.forget, run.caller, run.family, [*run.request.prompt_ids, *run.tokens])
        if self.store is not None:
            await self.work(self.store.delete, run)

    def _go_down(self) -> None:
        self.scheduler.stop()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._interrupt_paused)

    def _interrupt_paused(self) -> None:
        """Ends the streams of kept runs that the scheduler did not have."""
        for run_id, stored in self._stored.items():
            if not self._channels[run_id].ended:
                self._channels[run_id].push([Update(concatenate([]), (), stored.run.state, INTERRUPTED)])

    def _check_ready(self) -> None:
        if self.scheduler.error is not None:
            raise BusyError("the engine has stopped; see the server's log", 30, unavailable=True)
        if self._draining:
            raise BusyError("the server is going down", 30, unavailable=True)
        if not self.scheduler.ready.is_set():
            raise BusyError("the server is compiling its programs; /ready says when it is done", 5, unavailable=True)

    async def _resume(self) -> None:
        """Submits the background runs that an earlier server left."""
        if self.store is None:
            return
        for run_id in await self.work(self.store.unfinished):
            try:
                stored = await self._loaded(run_id)
                if stored is None or stored.run.state is not RunState.QUEUED:
                    continue
                self.scheduler.submit(stored.run, urgent=True)
            except (UserError, BusyError) as error:  # one that fits no slot here waits for a server of longer texts
                logger.warning("run %s does not go on: %s", run_id, error)
            except Exception:  # a fault of one run must not keep the others from going on
                logger.exception("run %s does not go on", run_id)
            else:
                logger.info("run %s goes on after %d tokens", run_id, len(stored.run.tokens))

    async def _loaded(self, run_id: str) -> StoredRun | None:
        """A kept run, from memory or from the folder."""
        async with self._loading:  # two readers of one journal would exclude each other
            return await self._read(run_id)

    async def _read(self, run_id: str) -> StoredRun | None:
        """As `_loaded`, for a caller that has the lock."""
        stored = self._stored.get(run_id)
        if stored is None and self.store is not None:
            stored = await self.work(self.store.load, run_id)
            if stored is not None:
                self._remember(stored)
        return stored

    def _remember(self, stored: StoredRun) -> Channel:
        run = stored.run
        updates = list(stored.updates)
        stored.updates = []
        if run.state.ended and (not updates or updates[-1].finish is None):
            finish = run.finish or CANCELLED
            updates.append(Update(concatenate([]), run.end(finish), run.state, finish, run.error))
        elif run.state is RunState.PAUSED:
            updates.append(Update(concatenate([]), (), run.state))
        channel = self._channels[run.id] = Channel(run, updates)
        self._stored[run.id] = stored
        # A run ends on the scheduler's thread, before its last update comes here: until then readers need the channel.
        ended = [each for each, other in self._stored.items() if other.run.state.ended and self._channels[each].ended]
        for run_id in ended[: max(len(ended) - _REMEMBERED, 0)]:
            self._stored.pop(run_id)
            self._channels.pop(run_id)
        return channel

    def _publish(self, run: Run, update: Update) -> None:
        """The scheduler's thread calls this."""
        stored, keeps = self._stored.get(run.id), self.store
        if (
            stored is not None
            and stored.run is run
            and keeps is not None
            and (update.state.ended or update.state is RunState.PAUSED)
        ):
            try:
                keeps.save(stored)
            except WriteError as error:
                logger.error("run %s: %s", run.id, error)
        self._delivery.put(run, update, first=len(update.log) == len(run.tokens))

    def _deliver(self, published: Sequence[tuple[Run, Update]]) -> None:
        for run, entries in itertools.groupby(published, key=lambda entry: entry[0]):
            channel = self._channels.get(run.id)
            if channel is not None and channel.run is run:
                channel.push([update for _, update in entries])
