"""The knowledge of plans for one text: their prices, kept or assumed, and the tokens that they are foreseen to give."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from statistics import median_low
from typing import Any

import jax

from tokenswift_jax.engine.row_costs import RowCosts
from tokenswift_jax.engine.step_costs import StepCosts
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.expected_tokens import ExpectedTokens
from tokenswift_jax.speculate.drafter import DraftWeights
from tokenswift_jax.speculate.plans import NamedPlan

# Before an iteration is measured, n rows are assumed to cost n / CPU_ROWS plain steps more: 4 rows of a 135M model on
# two cores cost 1.5. An H200 needs 1.13 plain steps for 16 rows of an 8B. Where the roofline (`RowCosts`) alone asks
# for more, that is assumed: 64 rows of an 8B took 1.6 plain steps of an H200 after 16,384 tokens and 2.4 after 126,976.
CPU_ROWS, ACCELERATOR_ROWS = 8, 123
# Seconds that a chunk counts as costing beside its iterations where none runs ahead, twice for a look. On two cores, a
# look costs the demo 3.4 ms, 2.2 to begin it and 1.2 to come back. Half of that does best on the stored texts
# (`tests/simulated_device.py`): with 1.2 ms instead, plans that would pay are not tried, and with 0.4 ms hostile texts
# take up to 1.12 times as long. On an H200, such chunks of SmolLM2 take 7 to 8 ms more than their iterations take in
# others.
CPU_OVERHEAD, ACCELERATOR_OVERHEAD = 0.00075, 0.007
OWN = 4  # newest prices measured on the text itself: with the kept one, two of them outvote it


class TextKnowledge:
    """The `Knowledge` of a text that grows: what earlier texts have left on disk, its prompt, and its own chunks."""

    def __init__(
        self,
        plain: NamedPlan,
        costs: StepCosts,
        counted: Callable[[NamedPlan], float | None],
        ngrams: Callable[[NamedPlan], float | None],
        head_share: float,
        trained: ExpectedTokens | None,
        row_costs: RowCosts | None,
    ) -> None:
        """
        Args:
          plain: plain decoding.
          costs: the costs of this model on this machine.
          counted: the tokens an iteration that a plan's draft heads would have emitted on the prompt; None: unknown.
          ngrams: the tokens an iteration that n-grams with the plan's node budget foresee at the end of the text; None
            for a plan without them.
          head_share: the draft LM head's share of the weights that a plain step reads (`head_share_of`).
          trained: what the training of the draft heads measured; None: nothing.
          row_costs: the device's roofline; None: unknown.
        """
        self._costs, self._counted, self._ngrams = costs, counted, ngrams
        self._head_share, self._trained, self._row_costs = head_share, trained, row_costs
        self._plain, self._length = plain, 1
        self._prices: dict[NamedPlan, float] = {}  # at the present length
        self._own: defaultdict[NamedPlan, deque[float]] = defaultdict(lambda: deque(maxlen=OWN))

    @property
    def overhead(self) -> float:
        """Seconds that a chunk costs beside its iterations where none runs ahead, on this kind of device."""
        return CPU_OVERHEAD if jax.default_backend() == "cpu" else ACCELERATOR_OVERHEAD

    def reach(self, length: int) -> None:
        """The text has so many committed positions now."""
        self._length = max(length, 1)
        self._prices.clear()

    def price(self, named: NamedPlan) -> float:
        """The price kept for this length, else an assumed one."""
        found = self._prices.get(named)
        if found is None:
            found = self._prices[named] = self._price(named)
        return found

    def _price(self, named: NamedPlan) -> float:
        known, own = self._costs.price(named, self._length), self._own[named]
        if known is not None:
            return median_low([known, *own])
        if own:
            return median_low(own)
        per_row = CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
        plan = named.plan
        verified = 1 + plan.rows / per_row
        if self._row_costs is not None:
            verified = max(verified, self._row_costs.price(plan.rows, self._length))
        reads = 0
        if plan.drafter.weights >= DraftWeights.HEADS:
            levels = min(len(plan.tree.widths), plan.config.num_draft_heads)
            reads = levels if plan.tree.per_parent else min(levels, 1)
            if plan.heads_verified(self._row_costs.batch if self._row_costs else 1):
                reads = 0
        return verified + (plan.drafter.weights >= DraftWeights.LAYERS) + reads * self._head_share

    def is_measured(self, named: NamedPlan) -> bool:
        """Whether the price was measured, at this or another length."""
        return bool(self._own[named]) or self._costs.price(named, self._length) is not None

    def tokens(self, named: NamedPlan) -> float | None:
        """The most that n-grams foresee, that the prompt shows of draft heads and that earlier texts showed: to believe
        too much costs one short chunk, to believe too little costs the text."""
        ngrams, counted = self._ngrams(named), self._counted(named)
        if self.is_live(named):
            return ngrams
        heads = [tokens for tokens in (counted, self._shown(named)) if tokens is not None]
        return max([*heads, ngrams or 1.0]) if heads else None

    def is_remembered(self, named: NamedPlan) -> bool:
        """Whether earlier texts, or training, showed what its drafts are worth."""
        return self._shown(named) is not None

    def _shown(self, named: NamedPlan) -> float | None:
        """The tokens an iteration that earlier texts showed; before the first of them, those that training measured."""
        kept = self._costs.tokens_an_iteration(named)
        if kept is None and self._trained is not None and named.schedule == "fused":
            return self._trained.with_nodes(named.plan.rows - 1)
        return kept

    def is_live(self, named: NamedPlan) -> bool:
        """Whether the foreseen tokens follow the text: n-grams alone do."""
        return named.plan.drafter.text_alone

    def plain_seconds(self) -> float | None:
        """Seconds of a plain step on earlier texts."""
        return self._costs.plain_seconds(self._plain, self._length)

    def learn_price(self, named: NamedPlan, price: float) -> None:
        """Keeps a price."""
        self._own[named].append(price)
        self._costs.add_price(named, self._length, price)
        self._prices.clear()

    def learn_plain(self, seconds: float) -> None:
        """Keeps the time of a plain step."""
        self._costs.add_plain_seconds(self._plain, self._length, seconds)


def head_share_of(config: ModelConfig, params: Any) -> float:
    """The draft LM head's share of the weights that a plain step reads."""
    return config.head_candidates * config.hidden_size / sum(leaf.size for leaf in jax.tree.leaves(params))
