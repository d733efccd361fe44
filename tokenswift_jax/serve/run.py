"""One run: a request, its text so far, and its state, which outlives every connection."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from tokenswift_jax.engine.journal import Journal
from tokenswift_jax.engine.sequence import SequenceOutput
from tokenswift_jax.errors import WriteError
from tokenswift_jax.request import Request
from tokenswift_jax.serve.stopwatch import Stopwatch
from tokenswift_jax.text.detokenizer import Decodes
from tokenswift_jax.text.repetition import Loop, RepetitionGuard
from tokenswift_jax.text.transcript import Segment
from tokenswift_jax.token_log import TokenLog, concatenate

_FEW = 32  # tokens to come of a text near its end


class OnRepetition(StrEnum):
    """The effect of a loop on a run: OFF shows it to readers, PAUSE also pauses the run there, END ends it there."""

    OFF = "off"
    PAUSE = "pause"
    END = "end"


class RunState(StrEnum):
    """The state of a run; the scheduler alone changes it.

    QUEUED waits for a slot; PREFILL: its prompt enters a cache; RUNNING has a slot; PAUSED keeps its tokens and waits
    for `resume`. The others are ends.
    """

    QUEUED = "queued"
    PREFILL = "prefill"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether the run gets no more tokens."""
        return self in (RunState.FINISHED, RunState.CANCELLED, RunState.FAILED)


@dataclass(frozen=True)
class Update:
    """The result of one chunk for one run, or its end; readers get every update once, in order.

    Attributes:
      log: the new tokens.
      segments: the released text, each piece with the source of the token that completed it.
      state: the state after the update.
      finish: "stop", "eos", "length" or "repetition" for a finished run; "cancelled", "interrupted" or "error" for
        other ends; "continued" where the run goes on beyond its limit, to readers who come again.
      error: the reason of a failure, one line.
      widths: characters of text that each new token completed; `segments` may keep the last ones back.
      loops: the loops that were long enough with one of the new tokens.
    """

    log: TokenLog
    segments: tuple[Segment, ...] = ()
    state: RunState = RunState.RUNNING
    finish: str | None = None
    error: str | None = None
    widths: tuple[int, ...] = ()
    loops: tuple[Loop, ...] = ()

    @property
    def text(self) -> str:
        """The released text."""
        return "".join(text for text, _ in self.segments)


def new_id(kind: str) -> str:
    """An unguessable id, such as "run_3f..."; files take their names from it."""
    return f"{kind}_{secrets.token_hex(16)}"


@dataclass(eq=False)
class Run:
    """A request on its way through the scheduler.

    Attributes:
      request: the request; `sampling.sequence` and `seed` determine its tokens.
      owner: who asked, for fairness and for who may see it: a hash of the key.
      tokenizer: None: the run has no text.
      logprobs: whether its tokens come with log-probabilities.
      salt: K/V are shared between requests of one owner and one salt alone (vLLM's `cache_salt`).
      family: the id that it shares with the runs that go on from it: they may use the K/V of its own tokens too; None:
        nothing goes on from it.
      cached: tokens of the prompt whose K/V came from an earlier text.
      on_repetition: the effect of a loop; None: nobody looks for any.
      journal: the file that outlives the server; None: the run lives in memory alone.
      row: tokens and text so far.
      tokens: the emitted token ids.
      loops: the loops found in them.
      created: seconds since 1970.
      submitted: seconds of `time.perf_counter` when the run entered the queue.
      clock: the seconds since this server first queued it, until its end, pauses left out.
      first_token: the seconds of that clock at its first token here.
      given: tokens that it had when that clock began: those of its branch, or of an earlier server.
    """

    request: Request
    owner: str = ""
    tokenizer: Decodes | None = None
    logprobs: bool = False
    on_repetition: OnRepetition | None = None
    journal: Journal | None = None
    salt: str = ""
    family: str | None = None
    cached: int = 0
    id: str = field(default_factory=lambda: new_id("run"))
    state: RunState = RunState.QUEUED
    error: str | None = None
    finish: str | None = None
    created: float = field(default_factory=time.time)
    submitted: float = field(default_factory=time.perf_counter)
    clock: Stopwatch = field(default_factory=Stopwatch)
    first_token: float | None = None
    given: int = 0
    tokens: list[int] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.row = SequenceOutput(self.tokenizer, self.request)
        self._guard = None if self.on_repetition is None else RepetitionGuard()

    @property
    def length(self) -> int:
        """The most positions that the run's text can take, prompt included."""
        return len(self.request.prompt_ids) + self.request.max_new_tokens

    @property
    def tokens_left(self) -> int:
        """The most tokens that it may still get."""
        return self.request.max_new_tokens - len(self.tokens)

    @property
    def ends_soon(self) -> bool:
        """Whether it is near its end: others let it come there first."""
        return self.tokens_left <= _FEW

    @property
    def caller(self) -> tuple[str, str]:
        """The owner and the salt: K/V are shared between texts that agree in both."""
        return self.owner, self.salt

    @property
    def log(self) -> TokenLog:
        """All emitted tokens."""
        return concatenate(list(self.row.parts))  # the scheduler's thread may add one meanwhile

    @property
    def looping(self) -> bool:
        """Whether the newest token completed a loop at which the run has to pause."""
        found = bool(self.loops) and self.loops[-1].end == len(self.tokens)
        return found and self.on_repetition is OnRepetition.PAUSE and self.row.finish is None

    def begin_to_wait(self) -> None:
        """Notes that it enters the queue, new or after a pause."""
        if not self.clock.started:
            self.given = len(self.tokens)
        self.state, self.submitted = RunState.QUEUED, time.perf_counter()
        self.clock.start()

    def halt(self, state: RunState, finish: str | None = None, error: str | None = None) -> None:
        """Notes its end or its pause."""
        self.state, self.finish, self.error = state, finish, error
        self.clock.halt()

    def take(self, log: TokenLog) -> Update:
        """Adds a chunk up to the token that ends the text or pauses the run, to the journal too.

        Raises:
          WriteError: the journal cannot be written; the run is as it was before.
        """
        loops: list[Loop] = []
        if self.on_repetition is OnRepetition.PAUSE and (loops := self._scanned(log.token_ids, most=1)):
            log = log.cut(loops[0].end - len(self.tokens))
        update = self.add(log, loops)
        if self.journal is not None and len(update.log):
            try:
                self.journal.append(update.log, [])
            except WriteError:
                self._drop_newest()
                raise
        return update

    def add(self, log: TokenLog, loops: Sequence[Loop] = ()) -> Update:
        """Adds tokens up to the end of the text; `loops` are those that the guard has found in them already."""
        before, places = len(self.tokens), len(self.row.widths)
        found = [*loops, *self._scanned(log.token_ids[self._seen - before :])]
        kept, segments = self.row.take(log)
        self.tokens += kept.token_ids.tolist()
        found = [loop for loop in found if loop.end <= len(self.tokens)]
        self.loops += found
        widths = tuple(self.row.widths[places:])
        return Update(kept, tuple(segments), self.state, self.row.finish, widths=widths, loops=tuple(found))

    def _drop_newest(self) -> None:
        """Drops the newest chunk. Without this, readers would see tokens that a restart does not know."""
        before = Run(self.request, tokenizer=self.tokenizer, on_repetition=self.on_repetition)
        for part in self.row.parts[:-1]:
            before.add(part)
        self.row, self._guard, self.tokens, self.loops = before.row, before._guard, before.tokens, before.loops

    @property
    def _seen(self) -> int:
        return len(self.tokens) if self._guard is None else self._guard.seen

    def _scanned(self, token_ids: np.ndarray, most: int | None = None) -> list[Loop]:
        """The loops that the next tokens complete, at most so many; the guard reads no further."""
        found: list[Loop] = []
        begun = self._seen
        while self._guard is not None and len(found) != most:
            loop = self._guard.scan(token_ids[self._guard.seen - begun :])
            if loop is None:
                break
            found.append(loop)
        return found

    def end(self, finish: str) -> tuple[Segment, ...]:
        """Ends the text after its last token; returns the text held back until now."""
        return tuple(self.row.end(finish))


def restored(run: Run, parts: list[TokenLog]) -> list[Update]:
    """Brings a new run to the state that the chunks of its journal describe; returns their updates."""
    updates = []
    for part in parts:
        if run.row.finish is not None:
            break
        updates.append(replace(run.add(part), state=RunState.RUNNING))
    if run.row.finish is not None:
        run.state, run.finish = RunState.FINISHED, run.row.finish
        updates[-1] = replace(updates[-1], state=RunState.FINISHED)
    return updates
