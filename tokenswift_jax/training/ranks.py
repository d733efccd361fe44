"""The ranks of the target's draws among the candidates of the drafts, which the search for node sets counts.

The drafters rank with the same `DraftSampler`, but they make trees: at a root, a tree that contains `WIDTH` candidates
below the drawn tokens of every depth has `WIDTH` ** depth nodes. So this module runs each head once a root, below the
drawn tokens alone. tests/training/test_ranks.py compares the ranks with the drafts that the engine accepts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.errors import UserError
from tokenswift_jax.model import Model
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel.rules import split_as
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.speculate.candidates import DraftSampler
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.step.state import StepInputs
from tokenswift_jax.training.prediction import Replay, take

WIDTH = 8  # candidates a depth that a node set may use
_ROOTS = 32  # roots with logits in memory at one time


def measure_ranks(model: Model, replay: Replay, schedule: str, width: int = WIDTH) -> list[np.ndarray]:
    """The rank of the token 1, 2, .. after each root among the candidates of its depth: for each text int32
    `[roots, depth]`.

    The program ranks candidates as decoding does (processors, penalty window of the root, shared noise). Below depth 1
    the candidates are those under the drawn tokens, which sequential heads see. The roots are the tokens of the
    continuation except the last. The rank is `width` for a token that is not among the candidates or past the text's
    end. Under `partial`, depth 1 is the backbone's own guess, as with a draft cache that contains everything, and it is
    always right.

    Raises:
      UserError: no heads.
    """
    config = model.config
    if not config.num_draft_heads:
        raise UserError(f"{model.path} has no draft heads; train some")
    width = candidates_within(config, width)
    program = _program(model.graphdef, replay.features, schedule == "partial", width)
    found = []
    starts, ends = np.asarray(replay.starts).tolist(), np.asarray(replay.ends).tolist()
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        parts = [
            np.asarray(program(replay.inputs, replay.tokens, replay.hidden, jnp.int32(row), jnp.int32(first)))
            for first in range(start, end - 1, _ROOTS)
        ]
        depth = config.num_draft_heads + (schedule == "partial")
        found.append(np.concatenate([np.zeros((0, depth), np.int32), *parts])[: end - 1 - start])
    return found


def candidates_within(config: ModelConfig, width: int = WIDTH) -> int:
    """At most `width` candidates of a depth; fewer where the draft heads score fewer tokens. Under `partial`, the best
    candidate of depth 1 is always right."""
    return min(width, config.head_candidates)


@functools.cache
def _program(graph: nnx.GraphDef, features: SamplingFeatures, partial: bool, width: int) -> Callable:
    """The jitted function (inputs, tokens, hidden, row, first root) -> ranks int32 [_ROOTS, depth]."""

    def run(inputs: StepInputs, tokens: jax.Array, hidden: jax.Array, row: jax.Array, first: jax.Array) -> jax.Array:
        model: Decoder = nnx.merge(graph, inputs.params)
        vocab, depth = model.config.padded_vocab, model.config.num_draft_heads + partial
        length = first + jnp.arange(_ROOTS, dtype=jnp.int32)
        places = length[:, None] + jnp.arange(1, depth + 1, dtype=jnp.int32)[None, :]
        text, states = tokens[row][None], hidden[row][None]
        drawn = take(text, places.reshape(1, -1))[0].reshape(places.shape)
        root = take(text, length[None])[0]
        read = take(states, (length if partial else length - 1)[None])[0]
        settings = jax.tree.map(lambda x: jnp.broadcast_to(x[row][None], (_ROOTS, *x.shape[1:])), inputs.sequence)
        noise = gumbel_noise(settings.keys, places, vocab) if features >= SamplingFeatures.SAMPLED else None
        everywhere = jnp.broadcast_to(text, (_ROOTS, text.shape[1]))
        last_positions = split_as(penalty.last_positions(everywhere, length + 1, vocab), "rows", "vocab")
        ranking = DraftSampler(length + 1, last_positions, noise, settings, features)
        with exact_products(hidden.dtype):
            # Head i reads the token just above its guess: head 0 reads the root under `fused`, the depth-1 token
            # otherwise.
            above = jnp.concatenate([root[:, None], drawn], axis=1)[:, partial:depth]
            logits = model.draft_logits(read, above)
            if partial:
                logits = jnp.concatenate([model.logits(read)[:, None], logits], axis=1)
            candidates = _candidates(model, ranking, logits, drawn, width)
        hits = candidates == drawn[:, :, None]
        rank = jnp.where(hits, jnp.arange(width, dtype=jnp.int32)[None, None], jnp.int32(width)).min(axis=-1)
        return jnp.where(places < inputs.sequence.stop_length[row], rank, jnp.int32(width))

    return jax.jit(run)


def _candidates(model: Decoder, ranking: DraftSampler, logits: jax.Array, drawn: jax.Array, width: int) -> jax.Array:
    """Candidates int32 [roots, depth, width], with the penalty windows and noise of `candidates.head_levels`."""
    depths = jnp.arange(logits.shape[1], dtype=jnp.int32)
    if model.config.draft_head_type != "sequential":
        return ranking.best(logits, (), depths, width)[0]
    path = [drawn[:, i : i + 1] for i in range(logits.shape[1])]
    best = [ranking.best(logits[:, i : i + 1], path[:i], depths[i : i + 1], width)[0] for i in range(logits.shape[1])]
    return jnp.concatenate(best, axis=1)
