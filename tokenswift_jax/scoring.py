"""Logits of given texts at every position, from the target and its draft heads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.arguments import check_model
from tokenswift_jax.audit.teacher import teacher_forced
from tokenswift_jax.errors import UserError, is_whole
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel.mesh import run, use
from tokenswift_jax.parallel.residual import replicate
from tokenswift_jax.parallel.rules import one_device
from tokenswift_jax.parallel.vocabulary import scores_of
from tokenswift_jax.prompt import Prompt, encode, is_batch
from tokenswift_jax.sample.draw import draw
from tokenswift_jax.sample.logprobs import logprobs_of
from tokenswift_jax.step.exact_products import exact_products

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def score(model: Model, texts: Sequence[Prompt]) -> np.ndarray:
    """Teacher-forced logits [batch, longest, vocab] in float32: entry i is for the token at position i + 1.

    A text is a string or token ids. Entries past a text's end are NaN. Raises UserError for no, empty or too long texts
    and for ids outside the vocabulary.
    """
    check_model(model)
    return _logits(model, texts, heads=False)[:, :, 0]


@dataclass(frozen=True)
class ScoredText:
    """The target's log-probability of each token of a text except the first, given the tokens before it.

    Attributes:
      token_ids: the text, n + 1 tokens.
      logprobs: float32 [n]; entry i is the log-probability of the token at position i + 1.
      top_ids, top_logprobs: int32 and float32 [n, top], the likeliest tokens there, likeliest first.
      greedy: bool [n], whether the token is the likeliest.
      ranks: int32 [n], the number of tokens that are at least as likely as the token, itself included.
    """

    token_ids: list[int]
    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    greedy: np.ndarray
    ranks: np.ndarray


def score_tokens(model: Model, texts: Sequence[Prompt], top: int = 0) -> list[ScoredText]:
    """Teacher-forced log-probabilities, reduced on the device, which never stores the logits of more than one chunk of
    one text (on a mesh, of every text).

    Raises UserError as `score`, and for a `top` that is not a whole number from 0 to the vocabulary's size.
    """
    check_model(model)
    vocab = model.config.vocab_size
    if not is_whole(top, 0) or top > vocab:
        raise UserError(f"top is {top!r}; it must be a whole number from 0 to {vocab}", arguments=("top",))
    rows = _encoded(model, texts)
    reduce = _reduction(model.graphdef, int(top))
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in rows]
    for start, hidden in teacher_forced(model, rows):
        following = _following(rows, start, hidden.shape[1], 1)[..., 0]
        with use(model.mesh):
            found = [np.asarray(values) for values in run(reduce, model.params, hidden, following)]
        for row, text in enumerate(rows):
            taken = max(min(len(text) - 1 - start, hidden.shape[1]), 0)
            parts[row].append(tuple(values[row, :taken] for values in found))
    return [
        ScoredText(text, *map(np.concatenate, zip(*of_row, strict=True)))
        for text, of_row in zip(rows, parts, strict=True)
    ]


def draft_logits(model: Model, texts: Sequence[Prompt]) -> np.ndarray:
    """Logits [batch, longest, heads + 1, vocab] in float32 of the backbone and of each draft head, over the full cache.

    Entry [:, i, j] is for the token at position i + 1 + j. Sequential heads see the text's own tokens: entry
    [:, i, j] has seen those up to position i + j, and is NaN where the text ends before that. Entries past a text's end
    are NaN. Raises UserError for a checkpoint without heads, and as `score`.
    """
    check_model(model)
    if not model.config.num_draft_heads:
        raise UserError(f"{model.path} has no draft heads; train some, or use score")
    return _logits(model, texts, heads=True)


def _logits(model: Model, texts: Sequence[Prompt], *, heads: bool) -> np.ndarray:
    rows = _encoded(model, texts)
    project = _projection(model.graphdef, heads)
    longest = max(map(len, rows))
    count = model.config.num_draft_heads * heads
    sequential = heads and model.config.draft_head_type == "sequential"
    result = np.full((len(rows), longest, 1 + count, model.config.vocab_size), np.nan, np.float32)
    for start, hidden in teacher_forced(model, rows):
        following = _following(rows, start, hidden.shape[1], count) if sequential else None
        with use(model.mesh):
            logits = np.asarray(run(project, model.params, hidden, following))
        for row, text in enumerate(rows):
            taken = max(min(len(text) - start, logits.shape[1]), 0)
            result[row, start : start + taken] = logits[row, :taken, ..., : model.config.vocab_size]
    if sequential:
        for row, text in enumerate(rows):
            for head in range(1, count + 1):
                result[row, max(len(text) - head, 0) :, head] = np.nan
    return result


def _encoded(model: Model, texts: Sequence[Prompt]) -> list[list[int]]:
    if not is_batch(texts):
        raise UserError("give a list of texts, each a string or a list of token ids")
    return [encode(text, model.tokenizer, model.config.vocab_size, name="text") for text in texts]


def _following(rows: Sequence[Sequence[int]], start: int, count: int, heads: int) -> np.ndarray:
    """The tokens 1, 2, .. places after positions start.., int32 [batch, count, heads]; 0 past a text's end."""
    tokens = np.zeros((len(rows), start + count + heads), np.int32)
    for row, text in enumerate(rows):
        kept = min(len(text), tokens.shape[1])
        tokens[row, :kept] = text[:kept]
    return np.stack([tokens[:, start + head : start + head + count] for head in range(1, heads + 1)], axis=-1)


@functools.cache
def _projection(graph: nnx.GraphDef, heads: bool) -> Callable:
    def project(params: object, hidden: jax.Array, following: jax.Array | None) -> jax.Array:
        model, hidden = nnx.merge(graph, params), replicate(hidden)  # groups of devices would have texts of their own
        with exact_products(hidden.dtype):
            logits = model.logits(hidden)[:, :, None]
            return jnp.concatenate([logits, model.draft_logits(hidden, following)], axis=2) if heads else logits

    return jax.jit(project)


@functools.cache
def _reduction(graph: nnx.GraphDef, top: int) -> Callable:
    def of_texts(model: Decoder, hidden: jax.Array, following: jax.Array) -> tuple[jax.Array, ...]:
        with exact_products(hidden.dtype):
            logits = model.logits(hidden)
        found = logprobs_of(logits, following, top)
        ranks = jnp.sum(logits >= scores_of(logits, following)[..., None], axis=-1, dtype=jnp.int32)
        return found.values, found.top_ids, found.top_values, draw(logits, None) == following, ranks

    return text_by_text(graph, of_texts)


def text_by_text(graph: nnx.GraphDef, of_texts: Callable[[Decoder, jax.Array, jax.Array], tuple]) -> Callable:
    """A jitted function of (params, hidden [batch, rows, hidden_size], ids [batch, rows, ...]), for one text after the
    other; on a mesh, for all at once.

    Args:
      graph: the decoder's.
      of_texts: reduces the hidden rows and ids of texts to arrays whose first dimension is the batch.
    """

    def reduce(params: object, hidden: jax.Array, ids: jax.Array) -> tuple[jax.Array, ...]:
        model = nnx.merge(graph, params)
        if not one_device():
            return of_texts(model, hidden, ids)
        # One text at a time: 128 texts would need the memory of 32,768 rows of logits.
        found = jax.lax.map(lambda one: of_texts(model, *(x[None] for x in one)), (hidden, ids))
        return tuple(values[:, 0] for values in found)

    return jax.jit(reduce)
