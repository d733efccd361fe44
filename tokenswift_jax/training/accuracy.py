"""The accuracy of draft heads on held-out text: their losses, and how often their best guesses are right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.audit.teacher import teacher_forced
from tokenswift_jax.errors import UserError
from tokenswift_jax.model import Model
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel.vocabulary import scores_of
from tokenswift_jax.sample.draw import top_candidates
from tokenswift_jax.step.exact_products import exact_products

RANKS = 3  # best guesses counted
_POSITIONS = 128  # positions with logits in memory at one time, of the target and of one head
_WINDOWS = 4  # windows that go through the target together


@dataclass(frozen=True)
class HeadAccuracy:
    """The accuracy of one draft head over held-out text (a sequential head sees the text's own tokens).

    Attributes:
      text_loss: cross entropy with the text's token, in nats.
      model_loss: cross entropy with the target's own distribution (no temperature, no filter), in nats.
      text_top: share of positions where the text's token is among the head's 1, 2, 3 best guesses.
      model_top: the same share for the target's likeliest token, which greedy decoding accepts.
    """

    text_loss: float
    model_loss: float
    text_top: tuple[float, ...]
    model_top: tuple[float, ...]


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of all draft heads over the same positions.

    Attributes:
      positions: number of positions counted.
      base_loss: the target's cross entropy with the text's next token, in nats.
      heads: one entry a head; the head that guesses the nearest token is first.
    """

    positions: int
    base_loss: float
    heads: tuple[HeadAccuracy, ...]


def measure_accuracy(model: Model, windows: np.ndarray) -> Accuracy:
    """The accuracy of the heads over windows int32 [windows, length] of held-out text, each read from its first token.

    It leaves out positions where some head would guess past the window. At any time, memory contains the logits of a
    few hundred positions.

    Raises:
      UserError: no heads, no windows, or windows too short for the heads.
    """
    heads = model.config.num_draft_heads
    if not heads:
        raise UserError(f"{model.path} has no draft heads; train some")
    if windows.ndim != 2 or not len(windows) or windows.shape[1] < heads + 2:
        raise UserError(f"held-out text: windows of at least {heads + 2} tokens are needed, not {windows.shape}")
    count = windows.shape[1] - 1 - heads  # positions up to the one where the last head guesses the window's last token
    rows = -(-count // _POSITIONS) * _POSITIONS
    function = _program(model.graphdef)
    sums: Any = None
    for first in range(0, len(windows), _WINDOWS):
        group = windows[first : first + _WINDOWS]
        missing = min(_WINDOWS, len(windows)) - len(group)
        texts = [window.tolist() for window in [*group, *[group[0]] * missing]]  # padded to one shape, compiled once
        hidden = jnp.concatenate([part for _, part in teacher_forced(model, texts)], axis=1)
        hidden = jnp.pad(hidden, ((0, 0), (0, max(rows + heads - hidden.shape[1], 0)), (0, 0)))
        for row, window in enumerate(group):
            tokens = jnp.asarray(np.pad(window, (0, rows + heads + 1 - len(window))), jnp.int32)
            for start in range(0, count, _POSITIONS):
                part = function(model.params, hidden[row], tokens, jnp.int32(start), jnp.int32(count))
                part = jax.tree.map(lambda value: np.asarray(value, np.float64), part)
                sums = part if sums is None else jax.tree.map(np.add, sums, part)
    total = count * len(windows)
    base, losses, hits = sums[0] / total, sums[1] / total, sums[2] / total
    return Accuracy(
        total,
        float(base),
        tuple(
            HeadAccuracy(float(loss[0]), float(loss[1]), tuple(hit[0].tolist()), tuple(hit[1].tolist()))
            for loss, hit in zip(losses, hits, strict=True)
        ),
    )


@functools.cache
def _program(graph: nnx.GraphDef) -> Callable:
    """The jitted function (params, hidden [positions, size], tokens int32 [positions + 1], start, count) -> sums over
    the positions start.. below `count`: the target's loss [], the heads' losses [heads, 2] and hits int32
    [heads, 2, RANKS], text before model."""

    def run(params: Any, hidden: jax.Array, tokens: jax.Array, start: jax.Array, count: jax.Array):
        model: Decoder = nnx.merge(graph, params)
        heads = model.config.num_draft_heads
        hidden = jax.lax.dynamic_slice_in_dim(hidden, start, _POSITIONS + heads)
        tokens = jax.lax.dynamic_slice_in_dim(tokens, start, _POSITIONS + heads + 1)
        counted = start + jnp.arange(_POSITIONS, dtype=jnp.int32) < count

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(counted[:, None], values, jnp.zeros((), values.dtype)), axis=0)

        with exact_products(hidden.dtype):
            target = jax.nn.log_softmax(model.logits(hidden), axis=-1)
            best = jnp.argmax(target, axis=-1).astype(jnp.int32)
            following = jnp.stack([tokens[1 + i : 1 + i + _POSITIONS] for i in range(heads)], axis=-1)
            outputs = model.draft_outputs(hidden[:_POSITIONS], following)
            base = total(_loss_of(target[:_POSITIONS], tokens[1 : 1 + _POSITIONS])[:, None])[0]
            losses, hits = [], []
            for i in range(heads):
                scores = jax.nn.log_softmax(model.project_drafts(outputs[:, i]), axis=-1)
                wanted = target[1 + i : 1 + i + _POSITIONS]
                # Without this mask, a token that the target rules out makes the loss NaN, since 0 * -inf is NaN.
                possible = (wanted > -jnp.inf) & (scores > -jnp.inf)
                against_model = -jnp.sum(jnp.where(possible, jnp.exp(wanted) * scores, 0), axis=-1)
                text = tokens[2 + i : 2 + i + _POSITIONS]
                against_text = _loss_of(scores, text)
                against_text = jnp.where(against_text < jnp.inf, against_text, 0)
                losses.append(total(jnp.stack([against_text, against_model], axis=-1)))
                guesses, chances = top_candidates(scores, None, RANKS)
                guesses = jnp.where(chances > -jnp.inf, guesses, jnp.int32(-1))  # a draft vocabulary may have fewer
                found = [jnp.cumsum(guesses == right[:, None], axis=-1) for right in (text, best[1 + i :][:_POSITIONS])]
                hits.append(jnp.stack([total(hit.astype(jnp.int32)) for hit in found]))
        return base, jnp.stack(losses), jnp.stack(hits)

    return jax.jit(run)


def _loss_of(log_probabilities: jax.Array, tokens: jax.Array) -> jax.Array:
    return -scores_of(log_probabilities, tokens)
