"""The lead of each draw of a finished text over the runner-up: how near rounding came to another text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.audit.replay import draw_inputs
from tokenswift_jax.audit.teacher import ROWS, teacher_forced
from tokenswift_jax.engine.prefill import padded
from tokenswift_jax.kv.dense import round_up
from tokenswift_jax.parallel.mesh import run, use
from tokenswift_jax.request import Request
from tokenswift_jax.sample.draw import top_candidates
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.sample.processors import process

if TYPE_CHECKING:
    from tokenswift_jax.model import Model


def leads_of(model: Model, request: Request, token_ids: Sequence[int]) -> np.ndarray:
    """The difference between the two highest scores + noise of each draw of a text, in processed logits, [tokens].

    Two computations of a draw agree where their scores differ by less than half of it.
    """
    text, first = [*request.prompt_ids, *token_ids], len(request.prompt_ids)
    features, vocab = features_of(request.sampling), model.config.padded_vocab
    program, settings = _program(model.graphdef, features), sequence_params([request], vocab)
    tokens = jnp.asarray(padded([text], round_up(len(text), ROWS) + 1))
    leads = []
    for start, hidden in teacher_forced(model, [text[:-1]]):
        with use(model.mesh):
            found = run(program, model.params, hidden, tokens, jnp.int32(start), jnp.int32(first), settings)
        drawn = start + 1 + np.arange(ROWS)
        leads.append(np.asarray(found)[(drawn >= first) & (drawn < len(text))])
    return np.concatenate(leads)


@functools.cache
def _program(graph: nnx.GraphDef, features: SamplingFeatures) -> Callable[..., jax.Array]:
    def run(*given: Any) -> jax.Array:
        logits, _, noise, penalised, generated = draw_inputs(graph, features, *given)
        settings = given[-1]
        scores = process(logits, penalised=penalised, generated=generated, settings=settings, features=features)
        _, best = top_candidates(scores, noise, 2)
        return best[0, :, 0] - best[0, :, 1]

    return jax.jit(run)
