"""The stay of a run in a slot of a pool, and the device's work on such runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenswift_jax.engine.prefill import Prefill
from tokenswift_jax.engine.step_result import Pending
from tokenswift_jax.serve.lone_text import LoneText
from tokenswift_jax.serve.prefix_store import StoredText
from tokenswift_jax.serve.run import Run
from tokenswift_jax.speculate.plans import NamedPlan

if TYPE_CHECKING:
    from tokenswift_jax.serve.pool import Pool


@dataclass(eq=False)
class Tenancy:
    """A run's stay in a slot.

    Attributes:
      run: the run.
      slot: the slot.
      active: false once the run has left; chunks sent before that still carry its results, which no longer count.
      text: its place in the store of K/V; None: there is no store.
      prompt: its prefill, until its first chunk.
      lone: the choice of its plans while it is alone in the pool; None: it has not been alone there.
    """

    run: Run
    slot: int
    active: bool = True
    text: StoredText | None = None
    prompt: Prefill | None = None
    lone: LoneText | None = None


@dataclass(frozen=True, eq=False)
class Flight:
    """Work that the device has yet to finish.

    Attributes:
      pool: the pool that sent it.
      rows: the tenancies by their row in the result.
      pending: the result.
      inserted: whether this is an insertion; else it is a chunk.
      drafted: whether it is a chunk with drafts.
      chosen: the plan of a chunk of a lone text, which chose it.
      sent: seconds of `time.perf_counter` when it was sent.
    """

    pool: Pool
    rows: dict[int, Tenancy]
    pending: Pending
    inserted: bool = False
    drafted: bool = False
    chosen: NamedPlan | None = None
    sent: float = field(default_factory=time.perf_counter)
