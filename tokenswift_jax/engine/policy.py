"""Policies that name the plan of the next chunk; nothing else in the engine decides by measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.speculate.plans import NamedPlan


class PlanPolicy(Protocol):
    """Names the plan of every chunk; the emitted token ids do not depend on its choice."""

    @property
    def reason(self) -> str | None:
        """Why the present plan runs, a sentence without a full stop; None if the caller asked for it."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether the session must read the chunk under way, and call `attend`, before it sends another."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `attend` will compile or measure programs, which can take seconds."""
        ...

    def attend(self, engine: Engine, length: int) -> None:
        """Gets programs ready and measures them, where that is due; called before the first chunk, and whenever the
        policy waits.

        Args:
          engine: no chunk of it is under way.
          length: committed positions of the longest row.
        """
        ...

    def measure(self, engine: Engine, function: Callable[[Any], None]) -> None:
        """Calls a function that measures programs of the engine. Where several processes share the programs, process 0
        alone calls it, and the others repeat the calls of its engine."""
        ...

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk and the most iterations it may run (None: a whole chunk)."""
        ...

    def observe(self, named: NamedPlan, tokens: int, iterations: int, seconds: float, catch_up: float = 0.0) -> None:
        """Records a finished chunk.

        Args:
          named: the chunk's plan.
          tokens: emitted tokens per row, the minimum over the running rows.
          iterations: the chunk's iterations.
          seconds: wall time of the chunk, compilation excluded.
          catch_up: seconds spent before the chunk to prepare the plan's drafts, compilation excluded.
        """
        ...

    def close(self) -> None:
        """Ends the policy's own work, and keeps what it has learnt."""
        ...


class FixedPlan:
    """Names the same plan for every chunk."""

    reason = None
    waiting = busy = False

    def __init__(self, named: NamedPlan) -> None:
        self._named = named

    def attend(self, engine: Engine, length: int) -> None:
        """Has nothing to get ready: the session prepares the plan."""

    def measure(self, engine: Engine, function: Callable[[Any], None]) -> None:
        """Calls the function."""
        function(engine)

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The fixed plan, for whole chunks."""
        return self._named, None

    def observe(self, named: NamedPlan, tokens: int, iterations: int, seconds: float, catch_up: float = 0.0) -> None:
        """Ignores the measurements."""

    def close(self) -> None:
        """Has nothing to end."""
