"""Scores from logits: transformers' processors for every row of a step at once, without sorting the vocabulary.

Every filter keeps an upper set of scores (a token is kept iff its score >= a threshold; ties are kept), so one
threshold, which `filters` finds exactly, replaces all filters of a row.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.order_statistics import FEW_PASSES, ONE_BIT
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.filters import FilterParams, threshold
from tokenswift_jax.sample.params import SequenceParams, members


def process(
    logits: jax.Array,
    *,
    penalised: jax.Array,
    generated: jax.Array,
    settings: SequenceParams,
    features: SamplingFeatures,
) -> jax.Array:
    """The scores of every row's draw: -inf for tokens that may not be drawn, else unnormalised log-probabilities.

    The processors run in transformers' order: suppressed ids, EOS, penalty, temperature, top-k, top-p, min-p,
    eta_cutoff; each filter sees the tokens that the ones before it kept. A row's result depends on that row alone. NaN
    logits stay NaN.

    Args:
      logits: [batch, rows, vocab], float32 or wider.
      penalised: bool [batch, rows or 1, vocab], the tokens in the row's penalty window.
      generated: int32 [batch, rows], number of new tokens before the one to be drawn.
      settings: the settings of the batch.
      features: the sampling features of the step, static; at least `features_for` of the batch's settings.

    Returns:
      [batch, rows, vocab] of `wide_dtype(logits.dtype)`.
    """
    scores = logits.astype(wide_dtype(logits.dtype))
    early = (generated < settings.min_new_tokens[:, None])[:, :, None]
    # Without `replicate`, XLA splits the sets like the vocabulary, and gathers them at every step for the end of the
    # text.
    sets = replicate(settings.suppressed), replicate(settings.eos)
    suppressed, eos = (members(each, scores.shape[-1])[:, None] for each in sets)
    scores = jnp.where(suppressed | (early & eos), -jnp.inf, scores)
    penalty = _over_rows(settings.repetition_penalty, scores)
    scores = jnp.where(penalised, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)
    if features < SamplingFeatures.SAMPLED:
        return scores
    temperature = _over_rows(settings.temperature, scores)
    scores = scores / jnp.where(temperature > 0, temperature, 1)
    if features < SamplingFeatures.FILTERED:
        edge = jnp.max(scores, axis=-1, keepdims=True) + jnp.log(_over_rows(settings.min_p, scores))
        return jnp.where(scores < edge, -jnp.inf, scores)
    filters = FilterParams.of(settings, scores.dtype)
    lowest = jax.lax.platform_dependent(
        scores,
        filters,
        cpu=partial(threshold, search=ONE_BIT, listed=True),
        # A TPU would copy a row's blocks to another layout, and its on-chip memory has room for the scores of 64 rows.
        tpu=partial(threshold, search=FEW_PASSES, listed=False),
        default=partial(threshold, search=FEW_PASSES, listed=True),
    )
    return jnp.where(scores < lowest, -jnp.inf, scores)


def _over_rows(values: jax.Array, scores: jax.Array) -> jax.Array:
    """A setting [batch] as [batch, 1, 1] in the dtype of scores [batch, rows, vocab]."""
    return values.astype(scores.dtype)[:, None, None]
