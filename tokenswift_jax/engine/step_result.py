"""The output of one chunk: in flight on the device, then on the host."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from dataclasses import dataclass

import jax
import numpy as np

from tokenswift_jax.step.loop import Chunk
from tokenswift_jax.token_log import LogprobLog, TokenLog, from_records


@dataclass(frozen=True)
class StepResult:
    """The output of one chunk of iterations, on the host.

    Attributes:
      records: int32 [slots, most, 4], columns `token_log.RECORD`.
      logprobs: log-probabilities of the same tokens, [slots, most]; None if the plan gives none.
      counts: int32 [slots], number of valid records.
      finish: int32 [slots], `Finish` after the chunk.
      length: int32 [slots], committed positions after the chunk.
      iterations: number of iterations run.
    """

    records: np.ndarray
    logprobs: LogprobLog | None
    counts: np.ndarray
    finish: np.ndarray
    length: np.ndarray
    iterations: int

    def log(self, row: int, seconds: float, *, prefilled: bool = False) -> TokenLog:
        """The token log of one row; the chunk took `seconds`."""
        count, own = int(self.counts[row]), None
        if self.logprobs is not None:
            own = self.logprobs.at(row).cut(count)
        return from_records(self.records[row, :count], seconds, prefilled=prefilled, logprobs=own)


class Pending:
    """A chunk in flight."""

    def __init__(self, future: Future[Chunk]) -> None:
        self._future = future

    def wait(self) -> None:
        """Waits for the device; `result` raises the error of a chunk that failed."""
        with contextlib.suppress(Exception):
            jax.block_until_ready(self._future.result().counts)

    def result(self) -> StepResult:
        """Waits for the device and returns the output of the chunk."""
        chunk = self._future.result()
        counts, logprobs = np.asarray(chunk.counts), chunk.emitted.logprobs
        if logprobs is not None:
            logprobs = LogprobLog(*map(np.asarray, jax.tree.leaves(logprobs)))
        records, finish = np.asarray(chunk.emitted.records), np.asarray(chunk.finish)
        return StepResult(records, logprobs, counts, finish, np.asarray(chunk.length), int(chunk.iterations))
