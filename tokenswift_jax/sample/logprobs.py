"""Log-probabilities of emitted tokens, and of the likeliest tokens at the same positions."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.parallel.vocabulary import best, is_shared, scores_of
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.sampler import LogitsBatch, SamplingContext, row_scores


@dataclass(frozen=True)
class LogprobSpec:
    """The log-probabilities that a step returns; static.

    Attributes:
      top: the number of likeliest tokens, 0 or more.
      processed: True: those of the distribution that the draw is from (suppressed ids, penalty, temperature, filters; a
        greedy row's has temperature 1). False: those of the model's own distribution.
    """

    top: int
    processed: bool = False


@pytree
class Logprobs:
    """Log-probabilities of [batch, count] tokens.

    Attributes:
      values: float32 [batch, count], each token's own.
      top_ids: int32 [batch, count, top], the likeliest tokens, ties to the lower id.
      top_values: float32 [batch, count, top], the log-probabilities of the likeliest tokens, in descending order.
    """

    values: jax.Array = axes("batch", "count")
    top_ids: jax.Array = axes("batch", "count", "top")
    top_values: jax.Array = axes("batch", "count", "top")


def logprobs_of(scores: jax.Array, tokens: jax.Array, top: int) -> Logprobs:
    """Log-probabilities of tokens int32 [batch, count] under the softmax of scores [batch, count, vocab]."""
    scores = scores.astype(wide_dtype(scores.dtype))
    if is_shared(scores.shape[-1]):
        highest, ids, normaliser = best(scores, top)
    else:
        normaliser = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        highest, ids = jax.lax.top_k(scores, top)
    own = scores_of(scores, tokens) - normaliser[..., 0]
    return Logprobs(own.astype(jnp.float32), ids.astype(jnp.int32), (highest - normaliser).astype(jnp.float32))


def path_logprobs(
    spec: LogprobSpec,
    rows: LogitsBatch,
    context: SamplingContext,
    path: jax.Array,
    emitted: jax.Array,
    features: SamplingFeatures,
) -> Logprobs:
    """Log-probabilities of the tokens along the accepted path.

    Args:
      spec: the log-probabilities to return, static.
      rows: the logits of the tree rows and their places in the tree.
      context: the inputs that the tree rows of a text share.
      path: int32 [batch, count], the tree row that drew each token.
      emitted: int32 [batch, count]; -1 past the last token, where the results are meaningless.
      features: the sampling features of the step, static.
    """

    def along(values: jax.Array) -> jax.Array:
        index = path.reshape(*path.shape, *[1] * (values.ndim - 2))
        return jnp.take_along_axis(values, index, axis=1, mode="clip")

    walked = jax.tree.map(along, rows)
    scores = row_scores(walked, context, features=features) if spec.processed else walked.logits
    return logprobs_of(scores, jnp.maximum(emitted, 0), spec.top)
