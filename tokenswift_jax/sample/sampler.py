"""The draw of every row of a step; for any vocabulary it stores nothing of size [rows, vocab] beside the logits.

On an accelerator XLA fuses penalty, filters and noise into the reductions that read the logits. XLA's CPU backend
stores the operands of its reductions; there a few rows at a time go through all of them, and the stored operands stay
in the caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.draw import draw_and_score
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.params import SequenceParams
from tokenswift_jax.sample.processors import process

# Scores per block on CPU, 4 MB in float32. Among blocks of 1, 4 and 16 rows of 152,064 scores, 4 rows were the fastest,
# by up to 3 times.
_BLOCK = 2**20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogitsBatch:
    """The inputs of the draws, one entry per tree row.

    Attributes:
      logits: [batch, rows, vocab].
      depths: int32 [batch, rows], 0 for the root.
      path_tokens: int32 [batch, rows, depth], as in `penalty.row_penalised`.
    """

    logits: jax.Array
    depths: jax.Array
    path_tokens: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingContext:
    """The inputs that the tree rows of a text share.

    Attributes:
      next_position: int32 [batch], n + 1: the position after the root's, which the root's draw fills.
      last_positions: int32 [batch, vocab], `penalty.last_positions`.
      noise: float32 [batch, depth + 1, vocab] of positions n + 1 .., one vector per depth; None when all rows are
        greedy.
      settings: the settings of the batch.
    """

    next_position: jax.Array
    last_positions: jax.Array
    noise: jax.Array | None
    settings: SequenceParams


def draw_rows(rows: LogitsBatch, context: SamplingContext, features: SamplingFeatures) -> tuple[jax.Array, jax.Array]:
    """The draws, int32 [batch, rows], and for which tree rows there is none, bool [batch, rows].

    A row has no draw if its logits, suppressed tokens aside, contain a NaN or inf, or are all -inf.
    """
    _, count, vocab = rows.logits.shape
    draw_all = partial(_draw_rows, features=features)
    size = max(1, _BLOCK // vocab)
    if count <= size:
        return draw_all(rows, context)
    return jax.lax.platform_dependent(rows, context, cpu=partial(_by_blocks, draw_all, size), default=draw_all)


def _by_blocks(
    function: partial, size: int, rows: LogitsBatch, context: SamplingContext
) -> tuple[jax.Array, jax.Array]:
    """Applies `function` to `size` rows of one text at a time, and to some of the last rows twice where `size` does not
    divide their number."""
    batch, count, _ = rows.logits.shape
    blocks = -(-count // size)

    def block(i: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        text, start = i // blocks, jnp.minimum(i % blocks * size, count - size)

        def some(values: jax.Array) -> jax.Array:
            begin = (text, start, *[jnp.int32(0)] * (values.ndim - 2))
            return jax.lax.dynamic_slice(values, begin, (1, size, *values.shape[2:]))

        def own(values: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(values, text, 1)

        new = function(jax.tree.map(some, rows), jax.tree.map(own, context))
        return jax.tree.map(lambda old, part: jax.lax.dynamic_update_slice(old, part, (text, start)), drawn, new)

    nothing = jnp.zeros((batch, count), jnp.int32), jnp.zeros((batch, count), bool)
    return jax.lax.fori_loop(0, batch * blocks, block, nothing)


def row_scores(rows: LogitsBatch, context: SamplingContext, *, features: SamplingFeatures) -> jax.Array:
    """The scores to which every draw adds its noise: `processors.process` of the logits, [batch, rows, vocab]."""
    settings = context.settings
    penalised = penalty.row_penalised(
        context.last_positions, context.next_position, rows.path_tokens, rows.depths, settings.penalty_window
    )
    return process(
        rows.logits,
        penalised=penalised,
        generated=(context.next_position - settings.prompt_length)[:, None] + rows.depths,
        settings=settings,
        features=features,
    )


def _draw_rows(
    rows: LogitsBatch, context: SamplingContext, *, features: SamplingFeatures
) -> tuple[jax.Array, jax.Array]:
    scores = row_scores(rows, context, features=features)
    token, score = draw_and_score(scores, _at_depths(context.noise, rows.depths))
    return token, ~jnp.isfinite(score)


def _at_depths(noise: jax.Array | None, depths: jax.Array) -> jax.Array | None:
    """The noise of each tree row, [batch, rows, vocab], or [batch, 1, vocab] of a single depth. It is selected, not
    gathered, so that XLA fuses it."""
    if noise is None:
        return None
    chosen = noise[:, :1]
    for depth in range(1, noise.shape[1]):
        chosen = jnp.where((depths == depth)[:, :, None], noise[:, depth : depth + 1], chosen)
    return chosen
