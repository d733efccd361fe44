"""The knowledge of plans, from which a `Chooser` chooses."""

from __future__ import annotations

from typing import Protocol

from tokenswift_jax.speculate.plans import NamedPlan


class Knowledge(Protocol):
    """Knowledge of plans at the present length of the text."""

    @property
    def overhead(self) -> float:
        """Seconds that a chunk costs beside its iterations where none runs ahead."""
        ...

    def price(self, named: NamedPlan) -> float:
        """Plain steps that an iteration costs, measured or assumed."""
        ...

    def is_measured(self, named: NamedPlan) -> bool:
        """Whether the price was measured, at this or another length."""
        ...

    def tokens(self, named: NamedPlan) -> float | None:
        """Tokens that an iteration is foreseen to emit; None where nothing tells them before the plan has run."""
        ...

    def is_remembered(self, named: NamedPlan) -> bool:
        """Whether earlier texts showed the tokens of an iteration."""
        ...

    def is_live(self, named: NamedPlan) -> bool:
        """Whether the foreseen tokens follow the text while other plans run."""
        ...

    def plain_seconds(self) -> float | None:
        """Seconds of a plain step as earlier texts took them."""
        ...

    def learn_price(self, named: NamedPlan, price: float) -> None:
        """Takes a price measured on the text itself."""
        ...

    def learn_plain(self, seconds: float) -> None:
        """Takes the measured seconds of a plain step."""
        ...
