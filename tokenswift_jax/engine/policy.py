"""Which plan the next chunk runs: the only place that decides by what was measured."""

from __future__ import annotations

from typing import Protocol

from tokenswift_jax.speculate.plans import NamedPlan


class PlanPolicy(Protocol):
    """Names the plan of every chunk; whatever it names, the text is the same."""

    @property
    def trying(self) -> bool:
        """Whether chunks are timed one by one, so that none may be sent before the one ahead has been read."""
        ...

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk, and how many iterations it may run at most (None: a whole chunk)."""
        ...

    def observe(self, named: NamedPlan, tokens: int, seconds: float, catch_up: float = 0.0) -> None:
        """Takes in a finished chunk.

        Args:
          named: its plan.
          tokens: of a row, the fewest of the running ones.
          seconds: wall time of the chunk, compilation excluded.
          catch_up: seconds that preparing the plan's drafts took before it, compilation excluded.
        """
        ...


class FixedPlan:
    """The same plan for every chunk."""

    trying = False

    def __init__(self, named: NamedPlan) -> None:
        self._named = named

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """That plan, for whole chunks."""
        return self._named, None

    def observe(self, named: NamedPlan, tokens: int, seconds: float, catch_up: float = 0.0) -> None:
        """Nothing depends on measurements."""
