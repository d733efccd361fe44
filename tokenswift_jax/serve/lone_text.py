"""A text that is alone in its pool: it takes the plans that `generate` would choose among the compiled programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from tokenswift_jax.engine.adaptive import HORIZON, Chooser
from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.engine.foresight import NgramForesight, has_ngrams
from tokenswift_jax.engine.heads_foresight import HeadsForesight
from tokenswift_jax.engine.planner import measure
from tokenswift_jax.engine.prefill import Prefill
from tokenswift_jax.engine.row_costs import row_costs_of
from tokenswift_jax.engine.step_costs import costs_of
from tokenswift_jax.engine.text_knowledge import TextKnowledge, head_share_of
from tokenswift_jax.sample.params import ngram_lag_of
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.serve.run import Run
from tokenswift_jax.speculate.plans import NamedPlan

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_SAVED_EVERY = 60.0  # seconds between two writes of the costs to disk: a short text's end is no reason for one
# In a shorter text the chooser tries no drafts of unknown worth, so that a count of the heads' would cost more than it
# tells.
_COUNTED = HORIZON // 4
# First tokens of a text whose caller predicts it that are drafted at any cost: the caller asks for drafts, and
# nothing else tells what they are worth.
_PREDICTED = 64


class LoneTexts:
    """The knowledge of a pool about plans, for the texts that are alone in it.

    Attributes:
      costs: what is kept on disk; for a pool of one slot it is what `generate` keeps for one text.
      programs: the plans, beside those of several texts, that a lone text may take.
    """

    def __init__(self, model: Model, slots: int, plans: PlanSet) -> None:
        self._model, self._plans, self._narrow = model, plans, slots == 1
        self.programs = [*plans.undrafted, *(plans.ngrams if self._narrow else ())]
        # As a session of so many texts has it.
        self.costs = costs_of(model, slots)
        self.row_costs = row_costs_of(model.config, jax.numpy.dtype(model.dtype), slots)
        self.head_share, self.trained = head_share_of(model.config, model.params), model.config.expected_tokens
        self._saved = time.perf_counter()

    def count(self, prompt: Prefill, engine: Engine) -> None:
        """Compiles the count of heads' drafts, on a prompt of more tokens than the count needs."""
        _, plans = self._plans.choices(self._plans.features[0], ngrams=False)
        heads = HeadsForesight(self._model, plans)
        if heads.counts:
            heads.count(prompt, engine.programs, 1)

    def measure(self, engine: Engine, length: int, compiled: float, most: int) -> None:
        """Measures the plans on frozen rows, where the costs kept on disk tell too little.

        Args:
          engine: no chunk of it is under way, and all its programs are compiled.
          length: committed positions of its rows.
          compiled: seconds that a program took.
          most: positions of the longest text.
        """
        for features in self._plans.features:
            plain, plans = self._plans.choices(features, ngrams=self._narrow)
            for named in plans:
                measure(engine, self.costs, plain, named, length, compiled, most)
        self.costs.save_later()

    def begin(self, run: Run, prompt: Prefill | None, engine: Engine) -> LoneText:
        """Begins to choose for a run; `prompt` is its prefill with hidden states, if the run has just come from it."""
        plain, plans = self._plans.choices(self._plans.fitting([run.request.sampling]), ngrams=self._narrow)
        heads = HeadsForesight(self._model, plans)
        if prompt is not None and heads.counts and run.request.max_new_tokens - len(run.tokens) >= _COUNTED:
            heads.count(prompt, engine.programs, 1)
        text = [*run.request.predicted_ids, *run.request.prompt_ids, *run.tokens]
        ngrams = NgramForesight.of(plans, self._plans.speculation, [(text, ngram_lag_of(run.request.sampling))])
        return LoneText(self, plain, plans, run, heads, ngrams)

    def save(self) -> None:
        """Writes the costs to disk in another thread, unless it is too soon."""
        if time.perf_counter() - self._saved > _SAVED_EVERY:
            self._saved = time.perf_counter()
            self.costs.save_later()

    def close(self) -> None:
        """Writes the costs to disk."""
        self.costs.save()


def lone_texts(model: Model, slots: int, plans: PlanSet) -> LoneTexts | None:
    """The knowledge of a pool; None where its texts have no choice: a mode is named, or nothing drafts."""
    chosen = plans.optional and (plans.drafts or (slots == 1 and plans.ngrams))
    return LoneTexts(model, slots, plans) if chosen else None


class LoneText(TextKnowledge):
    """Names the plan of each chunk while a text is alone in its pool; the token ids do not depend on the choice."""

    def __init__(
        self,
        known: LoneTexts,
        plain: NamedPlan,
        plans: list[NamedPlan],
        run: Run,
        heads: HeadsForesight,
        ngrams: NgramForesight | None,
    ) -> None:
        """Takes plans whose programs are compiled, the counted drafts of heads, and the n-grams of the text so far."""

        def foreseen(named: NamedPlan) -> float | None:
            return ngrams.tokens_an_iteration(named.node_budget) if ngrams is not None and has_ngrams(named) else None

        own = heads.tokens_an_iteration, foreseen
        super().__init__(plain, known.costs, *own, known.head_share, known.trained, known.row_costs)
        self._known, self._foresight = known, ngrams
        self._ran: dict[NamedPlan, tuple[int, int]] = {}  # tokens and iterations
        self._drafting, self._believed = plans[0], _PREDICTED if run.request.predicted_ids else 0
        self.reach(len(run.request.prompt_ids) + len(run.tokens))
        self._chooser = Chooser(plain, plans, run.request.max_new_tokens - len(run.tokens), self)
        for named in plans:
            self._chooser.admit(named)

    def next_plan(self) -> tuple[NamedPlan, int | None]:
        """The plan of the next chunk and the most iterations it may run (None: a whole chunk)."""
        return (self._drafting, None) if self._believed > 0 else self._chooser.next_plan()

    def may_run_ahead(self, engine: Engine) -> bool:
        """Whether the next chunk may be sent before the one under way is read."""
        reads_first = self._believed <= 0 and self._chooser.reads_first
        return not reads_first and engine.is_ready(self.next_plan()[0])

    def took(self, named: NamedPlan | None, token_ids: Sequence[int], iterations: int, seconds: float | None) -> None:
        """Takes a finished chunk.

        Args:
          named: its plan; None for a chunk of several texts, whose plan the pool chose.
          token_ids: the text's new tokens.
          iterations: the chunk's iterations.
          seconds: the time of the chunk; None: something else ran meanwhile, so that it tells nothing.
        """
        if not token_ids:
            return
        self._believed -= len(token_ids)
        if self._foresight is not None:
            self._foresight.read(0, token_ids)
        self.reach(self._length + len(token_ids))
        if named is None:
            self._chooser.observe(self._plain, len(token_ids), iterations, 0.0, alone=False)
            return
        tokens, before = self._ran.get(named, (0, 0))
        self._ran[named] = tokens + len(token_ids), before + iterations
        self._chooser.observe(named, len(token_ids), iterations, seconds or 0.0, alone=seconds is not None)

    def close(self) -> None:
        """Keeps what the text has shown."""
        for named, (tokens, iterations) in self._ran.items():
            self._known.costs.add_text(named, tokens, iterations)
        self._known.save()
