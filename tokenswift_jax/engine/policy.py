"""Policies that name the plan of the next chunk; nothing else in the engine decides by measurement."""

from __future__ import annotations

from typing import Protocol

from tokenswift_jax.speculate.plans import NamedPlan


class PlanPolicy(Protocol):
    """Names the plan of every chunk; the emitted token ids do not depend on its choice."""

    @property
    def trying(self) -> bool:
        """Whether the session must time chunks one by one, and so read each chunk before it sends the next."""
        ...

    @property
    def reason(self) -> str | None:
        """Why the present plan runs, a sentence without a full stop; None if the caller asked for it."""
        ...

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk and the most iterations it may run (None: a whole chunk)."""
        ...

    def observe(self, named: NamedPlan, tokens: int, seconds: float, catch_up: float = 0.0) -> None:
        """Records a finished chunk.

        Args:
          named: the chunk's plan.
          tokens: emitted tokens per row, the minimum over the running rows.
          seconds: wall time of the chunk, compilation excluded.
          catch_up: seconds spent before the chunk to prepare the plan's drafts, compilation excluded.
        """
        ...


class FixedPlan:
    """Names the same plan for every chunk."""

    trying = False
    reason = None

    def __init__(self, named: NamedPlan) -> None:
        self._named = named

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The fixed plan, for whole chunks."""
        return self._named, None

    def observe(self, named: NamedPlan, tokens: int, seconds: float, catch_up: float = 0.0) -> None:
        """Ignores the measurements."""
