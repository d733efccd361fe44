"""The events of a scheduler that metrics count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenswift_jax.serve.run import Run
    from tokenswift_jax.serve.tenancy import Flight


class Observer:
    """Receives events on the scheduler's thread; this one ignores them."""

    def admitted(self, run: Run) -> None:
        """A run's prompt begins to enter a cache."""

    def entering(self, run: Run) -> None:
        """A run's prompt enters a cache; `run.cached` tells how much of it need not be computed."""

    def prefilled(self, positions: int) -> None:
        """A chunk of a prompt went to the device."""

    def first_token(self, run: Run) -> None:
        """A run has its first token."""

    def stepped(self, flight: Flight, result: Any) -> None:
        """The device finished a chunk or an insertion."""

    def ended(self, run: Run) -> None:
        """A run has ended."""
