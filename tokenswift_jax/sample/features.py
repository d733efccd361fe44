"""Sampling features of a compiled step: three static classes, so that settings of one class never recompile a step."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from tokenswift_jax.sampling import SamplingConfig


class SamplingFeatures(IntEnum):
    """The sampling operations that a step offers every row of its batch; a higher class contains the lower ones.

    A row that asks for less gets neutral values, which change no bit of its result.

    GREEDY: suppressed ids, `min_new_tokens` and the penalty; the draw is the highest score.
    SAMPLED: also temperature, noise and min-p, whose threshold follows from the highest score.
    FILTERED: also top-k, top-p, eta_cutoff and `min_tokens_to_keep`, which search the row's scores.
    """

    GREEDY = 0
    SAMPLED = 1
    FILTERED = 2


def features_of(config: SamplingConfig) -> SamplingFeatures:
    """The lowest class that serves the settings of one row."""
    if config.temperature == 0:
        return SamplingFeatures.GREEDY
    searches = (
        config.top_k is not None
        or (config.top_p is not None and config.top_p < 1)
        or config.eta_cutoff is not None
        or (config.min_tokens_to_keep > 1 and bool(config.min_p))
    )
    return SamplingFeatures.FILTERED if searches else SamplingFeatures.SAMPLED


def features_for(configs: Iterable[SamplingConfig]) -> SamplingFeatures:
    """The lowest class that serves the settings of every row of a batch."""
    return max(map(features_of, configs), default=SamplingFeatures.GREEDY)
