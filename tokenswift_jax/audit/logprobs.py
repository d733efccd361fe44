"""Log-probabilities of a finished text, from a replay through the target: those that decoding returns as it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.audit.replay import text_windows
from tokenswift_jax.audit.teacher import ROWS, teacher_forced
from tokenswift_jax.engine.prefill import padded
from tokenswift_jax.kv.dense import round_up
from tokenswift_jax.parallel.mesh import run, use
from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.logprobs import Logprobs, LogprobSpec, logprobs_of
from tokenswift_jax.sample.params import SequenceParams, sequence_params
from tokenswift_jax.sample.processors import process
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.token_log import LogprobLog, concatenate_logprobs

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def replayed_logprobs(model: Model, request: Request, token_ids: list[int], spec: LogprobSpec) -> LogprobLog:
    """Log-probabilities of `token_ids`, the emitted text of a request, at least one token."""
    text, first = [*request.prompt_ids, *token_ids], len(request.prompt_ids)
    settings = sequence_params([request], model.config.padded_vocab)
    program = _program(model.graphdef, features_of(request.sampling), spec)
    tokens = jnp.asarray(padded([text], round_up(len(text), ROWS) + 1))
    parts: list[LogprobLog] = []
    for start, hidden in teacher_forced(model, [text[:-1]]):
        begin, end = max(start + 1, first), min(start + 1 + ROWS, len(text))  # the positions that this chunk scores
        if begin >= end:
            continue
        with use(model.mesh):
            found = run(program, model.params, hidden, tokens, jnp.int32(start), jnp.int32(first), settings)
        rows = slice(begin - start - 1, end - start - 1)
        parts.append(LogprobLog(*map(np.asarray, jax.tree.leaves(found))).at(0).at(rows))
    replayed = concatenate_logprobs(parts)
    assert replayed is not None, "a text of at least one token has log-probabilities"
    return replayed


@functools.cache
def _program(graph: nnx.GraphDef, features: SamplingFeatures, spec: LogprobSpec) -> Callable:
    """The jitted function from one chunk's hidden states to the log-probabilities of the tokens after them."""

    def run(
        params: object,
        hidden: jax.Array,
        tokens: jax.Array,
        start: jax.Array,
        first: jax.Array,
        settings: SequenceParams,
    ) -> Logprobs:
        model = nnx.merge(graph, params)
        with exact_products(hidden.dtype):
            scores = model.logits(hidden)
        drawn, emitted, penalised = text_windows(tokens, start, settings, model.config.padded_vocab)
        if spec.processed:
            scores = process(scores, penalised=penalised, generated=drawn - first, settings=settings, features=features)
        return logprobs_of(scores, emitted, spec.top)

    return jax.jit(run)
