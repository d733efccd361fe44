"""Logits of given texts: what the target, and its draft heads, say at every position."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.decoding.loop import exact_products
from tokenswift_jax.decoding.teacher import teacher_forced
from tokenswift_jax.errors import UserError
from tokenswift_jax.prompt import encode

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def score(model: Model, texts: list[list[int]]) -> np.ndarray:
    """Teacher-forced logits [batch, longest, vocab] in float32: entry i is for the token at position i + 1.

    NaN past a text's end. Raises UserError for empty or too long texts and ids outside the vocabulary.
    """
    return _logits(model, texts, heads=False)[:, :, 0]


def draft_logits(model: Model, texts: list[list[int]]) -> np.ndarray:
    """Logits [batch, longest, heads + 1, vocab] in float32 of the backbone and of each draft head, over the full cache.

    Entry [:, i, j] is for the token at position i + 1 + j. NaN past a text's end. Raises UserError for a checkpoint
    without heads, and as `score`.
    """
    if not model.config.num_draft_heads:
        raise UserError(f"{model.path} has no draft heads; train some, or use score")
    return _logits(model, texts, heads=True)


def _logits(model: Model, texts: list[list[int]], *, heads: bool) -> np.ndarray:
    texts = [encode(text, model.tokenizer, model.config.vocab_size) for text in texts]
    project = _projection(model.graphdef, heads)
    longest = max(map(len, texts), default=0)
    count = 1 + model.config.num_draft_heads * heads
    result = np.full((len(texts), longest, count, model.config.vocab_size), np.nan, np.float32)
    for start, hidden in teacher_forced(model, texts):
        logits = np.asarray(project(model.params, hidden))
        for row, text in enumerate(texts):
            taken = max(min(len(text) - start, logits.shape[1]), 0)
            result[row, start : start + taken] = logits[row, :taken]
    return result


@functools.cache
def _projection(graph: nnx.GraphDef, heads: bool) -> Callable:
    def project(params: object, hidden: jax.Array) -> jax.Array:
        model = nnx.merge(graph, params)
        with exact_products(hidden.dtype):
            logits = model.logits(hidden)[:, :, None]
            return jnp.concatenate([logits, model.draft_logits(hidden)], axis=2) if heads else logits

    return jax.jit(project)
