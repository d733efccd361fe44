"""The plans of a pool: one way to draft, in the variants that its present rows need, and others for a text alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import plans
from tokenswift_jax.speculate.plans import NamedPlan
from tokenswift_jax.speculation import SpeculationConfig

TOP_LOGPROBS = 20  # OpenAI's limit; the program that gives log-probabilities always gives so many
ALL_FEATURES = tuple(SamplingFeatures)
# Node budgets of n-grams: on a CPU that of the heads there (`plans._NAMED_BUDGET`); elsewhere 16 rows cost 1.13 times
# one (`text_knowledge.ACCELERATOR_ROWS`).
_NGRAM_NODES, _NGRAM_NODES_ELSEWHERE = {"cpu": 3}, 15


class PlanSet:
    """One way to draft, in one variant for each class of sampling features, and one with log-probabilities for all.

    The variants share their drafter, so that a pool may change between them at every chunk; a row's tokens do not
    depend on the variant.

    Attributes:
      speculation: the settings of the drafts.
      optional: whether a pool may decode plainly where drafts do not pay: a mode that a person names always drafts.
      spec: the log-probabilities that the variant with them gives.
      features: the classes that have a variant, lowest first; the last one serves every request.
      draft_block: positions of the blocks that a draft cache selects; None: it selects single ones, or there is none.
    """

    def __init__(
        self,
        config: ModelConfig,
        speculation: SpeculationConfig,
        features: Sequence[SamplingFeatures] = ALL_FEATURES,
    ) -> None:
        """Raises UserError if the checkpoint lacks the draft heads that the speculation asks for."""
        self.spec = LogprobSpec(min(TOP_LOGPROBS, config.vocab_size))
        self.features, self.speculation = tuple(sorted(features)), speculation
        self.optional = speculation.mode == "auto"
        self.draft_block = speculation.draft_block
        self._drafted = {each: serving_plan(config, speculation, each) for each in self.features}
        self._undrafted = {each: plans.autoregressive_plan(config, each) for each in self.features}
        chosen = self.optional and speculation.ngram_k and self._drafted[self.features[0]].mode != "ngram"
        self._ngrams = {each: _ngram_plan(config, speculation, each) for each in self.features} if chosen else {}
        # Runs with log-probabilities are rare: they share one variant.
        self._with_logprobs = plans.with_logprobs(self._drafted[self.features[-1]], self.spec)

    @property
    def label(self) -> str:
        """A label for people."""
        return self._with_logprobs.label

    @property
    def drafts(self) -> bool:
        """Whether the plans draft anything."""
        return self._with_logprobs.plan.rows > 1

    @property
    def variants(self) -> list[NamedPlan]:
        """All variants, to compile before the first request."""
        return [*self._drafted.values(), self._with_logprobs]

    @property
    def undrafted(self) -> list[NamedPlan]:
        """The variants of plain decoding, for pools in which drafts do not pay."""
        return list(self._undrafted.values())

    @property
    def ngrams(self) -> list[NamedPlan]:
        """The variants of a second way to draft, by n-grams, for a text that is alone; none where a mode is named."""
        return list(self._ngrams.values())

    def choices(self, features: SamplingFeatures, *, ngrams: bool) -> tuple[NamedPlan, list[NamedPlan]]:
        """Plain decoding and the plans with drafts for a lone text; `ngrams`: those of `self.ngrams` too."""
        drafting = [self._drafted[features]] if self.drafts else []
        if ngrams and self._ngrams:
            drafting.append(self._ngrams[features])
        return self._undrafted[features], drafting

    def named(self, settings: Iterable[SamplingConfig], logprobs: bool, *, drafted: bool = True) -> NamedPlan:
        """The cheapest variant for rows of such settings; if not `drafted`, one of plain decoding, except for rows
        with log-probabilities."""
        if logprobs:
            return self._with_logprobs
        return (self._drafted if drafted else self._undrafted)[self.fitting(settings)]

    def fitting(self, settings: Iterable[SamplingConfig]) -> SamplingFeatures:
        """The lowest class that serves such settings."""
        needed = max(map(features_of, settings))
        return next(each for each in self.features if each >= needed)


def serving_plan(config: ModelConfig, speculation: SpeculationConfig, features: SamplingFeatures) -> NamedPlan:
    """The plan of a server: the one that a mode names; for mode `auto` the draft heads on the verified hidden state.

    Without heads, `auto` is n-grams on accelerators, and plain decoding on CPUs, where 4 rows cost 1.5 times one
    (`plans._NAMED_BUDGET`).
    """
    platform = jax.default_backend()
    if speculation.mode == "auto" and config.num_draft_heads:
        speculation = speculation.with_mode("tokenswift", "fused")
    elif speculation.mode == "auto" and platform != "cpu" and speculation.ngram_k:
        return _ngram_plan(config, speculation, features)
    elif speculation.mode == "auto":
        speculation = speculation.with_mode("autoregressive")
    elif speculation.mode == "tokenswift" and speculation.schedule == "auto":
        speculation = speculation.with_mode("tokenswift", "fused")
    found = plans.speculative_plans(config, speculation, features, platform)
    return found[0] if found else plans.autoregressive_plan(config, features)


def _ngram_plan(config: ModelConfig, speculation: SpeculationConfig, features: SamplingFeatures) -> NamedPlan:
    """The plan of mode `ngram`, with the settings of mode `auto`."""
    platform = jax.default_backend()
    budget = speculation.node_budget or _NGRAM_NODES.get(platform, _NGRAM_NODES_ELSEWHERE)
    speculation = replace(speculation.with_mode("ngram"), node_budget=budget)
    return plans.speculative_plans(config, speculation, features, platform)[0]
