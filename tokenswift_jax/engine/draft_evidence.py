"""The evidence of a text on its drafts: how far the foreseen tokens of each source of drafts came true."""

from __future__ import annotations

from tokenswift_jax.engine.plan_knowledge import Knowledge
from tokenswift_jax.speculate.plans import NamedPlan

# Weights of evidence on how far foreseen drafts come true: of an iteration relative to the next one of its kind; of an
# iteration relative to a token decoded plainly later; and of the belief that all come true, in iterations. The belief
# fades like an iteration. An iteration of a cheap plan risks little and tells as little, so both count in plain steps
# where these are more: the belief is worth RISKED plain steps lost, at most MOST_BELIEF iterations, and an iteration
# fades by FADING of what it may lose. With iterations alone, four without an accepted draft turn down a plan that costs
# 1.14 plain steps and is worth 1.3 (cost: up to a sixth of a text's speed).
ITERATION_DECAY, TOKEN_DECAY, BELIEF = 0.9, 0.997, 2.0
RISKED, MOST_BELIEF, FADING, LEAST_FADING = 1.0, 12.0, 0.3, 0.02


class DraftEvidence:
    """Corrects the foreseen tokens of an iteration by the drafts that came true."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._know = knowledge
        # Per source of drafts: extra tokens, those foreseen, and what is left of the belief in foreseen tokens.
        self._of: dict[str, tuple[float, float, float]] = {}

    def foreseen(self, named: NamedPlan) -> float:
        """Tokens that an iteration of a plan is foreseen to emit, not corrected."""
        found = self._know.tokens(named)
        if found is not None:
            return max(found, 1.0)
        # Half of the drafts of each depth: a shape that evidence scales.
        return 1 + sum(0.5**depth for depth in range(1, min(named.plan.rows, named.plan.depth + 1)))

    def gain(self, named: NamedPlan) -> float:
        """Tokens that an iteration of a plan is foreseen to emit, corrected by the drafts that came true."""
        extra = self.foreseen(named) - 1
        emitted, foreseen, belief = self._of.get(_source(named), (0.0, 0.0, 1.0))
        believed = belief * self._belief(named) * extra
        ratio = (emitted + believed) / max(foreseen + believed, 1e-6)
        return min(1 + extra * ratio, named.plan.depth + 1.0)

    def worst(self, named: NamedPlan) -> float:
        """Plain steps that an iteration without an accepted draft loses."""
        return max(self._know.price(named) - 1, 1e-6)

    def fade(self, tokens: int) -> None:
        """Lets so many plainly decoded tokens pass."""
        faded = TOKEN_DECAY**tokens
        for source, (emitted, foreseen, belief) in self._of.items():
            self._of[source] = emitted * faded, foreseen * faded, 1 + (belief - 1) * faded

    def add(self, named: NamedPlan, tokens: int, iterations: int) -> None:
        """Adds iterations of a plan that emitted so many tokens in all."""
        extra, foreseen = tokens / iterations - 1, self.foreseen(named) - 1
        kept = max(min(1 - FADING * self.worst(named), 1 - LEAST_FADING), ITERATION_DECAY)
        decay = kept**iterations
        a, b, belief = self._of.get(_source(named), (0.0, 0.0, 1.0))
        weight = (1 - decay) / (1 - kept)
        self._of[_source(named)] = a * decay + weight * extra, b * decay + weight * foreseen, belief * decay

    def _belief(self, named: NamedPlan) -> float:
        """The weight, in iterations, of the belief that the foreseen drafts of a plan come true."""
        return min(max(BELIEF, RISKED / self.worst(named)), MOST_BELIEF)


def _source(named: NamedPlan) -> str:
    """The source of a plan's drafts; the plans of one source share the evidence."""
    return named.schedule or named.mode
