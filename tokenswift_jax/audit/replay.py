"""The audit: a finished text is replayed through the target and every draw is made again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.audit.margin import margin
from tokenswift_jax.audit.teacher import ROWS, teacher_forced
from tokenswift_jax.engine.prefill import padded
from tokenswift_jax.kv.dense import round_up
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.processors import (
    Processors,
    SamplingInputs,
    draw,
    process,
    processors_for,
    sampling_inputs,
)
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.step.loop import exact_products

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_SAMPLED_ROWS = 64  # positions at which two row counts are compared
_NARROW = (1, 16)  # rows of the forwards that are compared with wide ones, as of plain decoding and of a tree
_MEASURED = 8  # mismatches whose margins are searched at once: a search costs about a hundred draws of each


@dataclass(frozen=True)
class AuditReport:
    """What the replay found.

    Attributes:
      positions: draws made again.
      mismatches: positions at which the emitted token is not the draw.
      max_margin: the largest margin of those, in logits (`margin.margin`); 0.0 without any.
      bound: the largest margin that rounding explains: 0.0 in float32 and float64, whose tokens must be identical;
        in narrower types 4 times the largest difference between the logits of the same tokens computed 256 rows and 16
        rows or one at a time, here, on this text. A draw can only differ where two computations of the logits differ by
        at least the margin; 64 positions are compared, and the factor covers the extremes of the others.
      failed: a mismatch exceeds the bound.
    """

    positions: int
    mismatches: int
    max_margin: float
    bound: float
    failed: bool


def audit(
    model: Model,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    sampling: SamplingConfig,
    min_new_tokens: int,
    ignore_eos: bool,
    sequence: int,
) -> AuditReport:
    """Recomputes every draw of `token_ids` after `prompt_ids`, whatever drafted them.

    sequence: `SamplingConfig.sequence` plus the index in the batch, the row's own.
    """
    if not token_ids:
        return AuditReport(0, 0, 0.0, 0.0, False)
    text, first = [*prompt_ids, *token_ids], len(prompt_ids)
    processors = processors_for(sampling, min_new_tokens=min_new_tokens, ignore_eos=ignore_eos)
    inputs = sampling_inputs(
        replace(sampling, sequence=sequence),
        vocab=model.config.vocab_size,
        batch=1,
        eos_ids=model.eos_token_ids,
        min_new_tokens=min_new_tokens,
    )
    redraw, measure = _programs(model.graphdef, processors)
    tokens = jnp.asarray(padded([text], round_up(len(text), ROWS) + 1))
    margins: list[float] = []
    positions = 0
    # The last token's own logits draw nothing.
    for start, hidden in teacher_forced(model, [text[:-1]]):
        if start + ROWS < first:
            continue
        arguments = (model.params, hidden, tokens, jnp.asarray(start, jnp.int32), jnp.asarray(first, jnp.int32), inputs)
        draws = np.asarray(redraw(*arguments))
        drawn = start + 1 + np.arange(ROWS)  # the position that each row draws
        audited = (drawn >= first) & (drawn < len(text))
        positions += int(audited.sum())
        emitted = np.asarray(tokens)[0, start + 1 : start + 1 + ROWS]
        wrong = np.flatnonzero(audited & (draws != emitted))
        for at in range(0, len(wrong), _MEASURED):
            rows = wrong[at : at + _MEASURED]
            found = measure(*arguments, jnp.asarray(np.resize(rows, _MEASURED), jnp.int32))
            margins += np.asarray(found)[: len(rows)].tolist()
    wide = jnp.dtype(jax.tree.leaves(model.params)[0].dtype).itemsize >= 4
    bound = 0.0 if wide or not margins else 4 * _logit_spread(model, text)
    largest = max(margins, default=0.0)
    return AuditReport(positions, len(margins), largest, bound, bool(margins) and (wide or largest > bound))


@functools.cache
def _programs(graph: nnx.GraphDef, processors: Processors) -> tuple[Callable, Callable]:
    """Two jitted functions of one chunk's hidden states: the draws int32 [ROWS], and the margins of the tokens that
    were emitted at some rows int32 [_MEASURED]."""

    def prepared(params: Any, hidden: jax.Array, tokens: jax.Array, start: jax.Array, first: jax.Array, inputs: Any):
        model = nnx.merge(graph, params)
        config = model.config
        with exact_products(hidden.dtype):
            logits = model.logits(hidden)
        drawn = (start + 1 + jnp.arange(ROWS, dtype=jnp.int32))[None]
        emitted = jnp.take_along_axis(tokens, drawn, axis=1, mode="clip")
        penalised = None
        if processors.penalty:
            begin = (start + 1)[None]
            last = penalty.last_positions(tokens, begin, config.vocab_size)
            penalised, _ = penalty.text_penalised(last, emitted, begin, inputs.window)
        noise = gumbel_noise(inputs.keys, drawn, config.vocab_size) if processors.sample else None
        return logits, emitted, noise, penalised, drawn - first

    def redraw(params: Any, hidden: Any, tokens: Any, start: Any, first: Any, inputs: SamplingInputs) -> jax.Array:
        logits, _, noise, penalised, generated = prepared(params, hidden, tokens, start, first, inputs)
        scores = process(logits, penalised=penalised, generated=generated, inputs=inputs, processors=processors)
        return draw(scores, noise)[0]

    def measure(
        params: Any, hidden: Any, tokens: Any, start: Any, first: Any, inputs: SamplingInputs, rows: jax.Array
    ) -> jax.Array:
        logits, emitted, noise, penalised, generated = jax.tree.map(
            lambda values: values[0][rows], prepared(params, hidden, tokens, start, first, inputs)
        )
        return margin(
            logits, emitted, noise, penalised=penalised, generated=generated, inputs=inputs, processors=processors
        )

    return jax.jit(redraw), jax.jit(measure)


def _logit_spread(model: Model, text: list[int]) -> float:
    """The largest difference between logits of the text's first positions, ROWS and `_NARROW` rows at a time."""
    sample, logits = text[:_SAMPLED_ROWS], _lm_head(model.graphdef)

    def computed(rows: int) -> np.ndarray:
        chunks = [np.asarray(logits(model.params, hidden))[0] for _, hidden in teacher_forced(model, [sample], rows)]
        return np.concatenate(chunks)[: len(sample)]

    whole = computed(ROWS)
    return max(float(np.abs(computed(rows) - whole).max()) for rows in _NARROW)


@functools.cache
def _lm_head(graph: nnx.GraphDef) -> Callable:
    return jax.jit(lambda params, hidden: nnx.merge(graph, params).logits(hidden))
