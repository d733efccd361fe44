"""The audit: it replays a finished text through the target and makes every draw again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.audit.margin import MARGIN_LIMIT, margin
from tokenswift_jax.audit.oracle import may_be_drawn, noise_of, penalty_windows
from tokenswift_jax.audit.teacher import ROWS, teacher_forced
from tokenswift_jax.engine.prefill import padded
from tokenswift_jax.kv.dense import round_up
from tokenswift_jax.models.layers import wide_dtype
from tokenswift_jax.parallel.mesh import run, use
from tokenswift_jax.parallel.rules import split_as
from tokenswift_jax.request import Request
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.draw import draw
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.params import SequenceParams, sequence_params
from tokenswift_jax.sample.processors import process
from tokenswift_jax.step.exact_products import exact_products

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_SAMPLED_ROWS = 64  # positions at which two row counts are compared
_NARROW = (1, 16)  # rows of the forwards compared with wide ones: those of plain decoding and of a tree
_MEASURED = 8  # mismatches per margin search, which costs about a hundred draws of each


@dataclass(frozen=True)
class AuditReport:
    """The findings of a replay.

    Attributes:
      positions: number of draws made again.
      mismatches: number of positions at which the emitted token is not the draw, or the draw is not the one that its
        definition gives (`audit.oracle`), which shares no code with it.
      max_margin: the largest margin of the mismatches, in logits (`margin.margin`); 0.0 without any.
      bound: the largest margin that rounding explains. In float32 and float64 it is 0.0: their tokens must be
        identical. In narrower types it is 4 times the largest difference between the logits of the same tokens computed
        256 rows and 16 rows or one row at a time, on this device and this text. A draw can only differ where two
        computations of the logits differ by at least the margin; 64 positions are compared, and the factor covers the
        extremes of the others.
      failed: whether a mismatch exceeds the bound, or a draw is not the one that its definition gives.
    """

    positions: int
    mismatches: int
    max_margin: float
    bound: float
    failed: bool


def audit(model: Model, request: Request, token_ids: Sequence[int]) -> AuditReport:
    """Recomputes every draw of `token_ids`, the emitted text of a request, however it was drafted."""
    if not token_ids:
        return AuditReport(0, 0, 0.0, 0.0, False)
    text, first = [*request.prompt_ids, *token_ids], len(request.prompt_ids)
    features = features_of(request.sampling)
    settings = sequence_params([request], model.config.padded_vocab)
    redraw, measure = _programs(model.graphdef, features)
    tokens = jnp.asarray(padded([text], round_up(len(text), ROWS) + 1))
    margins: list[float] = []
    positions = broken = 0
    # No draw uses the logits of the last token.
    for start, hidden in teacher_forced(model, [text[:-1]]):
        if start + ROWS < first:
            continue
        arguments = (
            model.params,
            hidden,
            tokens,
            jnp.asarray(start, jnp.int32),
            jnp.asarray(first, jnp.int32),
            settings,
        )
        with use(model.mesh):
            draws, logits = map(np.asarray, run(redraw, *arguments))
        drawn = start + 1 + np.arange(ROWS)  # the position that each row draws
        audited = (drawn >= first) & (drawn < len(text))
        positions += int(audited.sum())
        emitted = np.asarray(tokens)[0, start + 1 : start + 1 + ROWS]
        wrong = np.flatnonzero(audited & (draws != emitted))
        for at in range(0, len(wrong), _MEASURED):
            rows = wrong[at : at + _MEASURED]
            with use(model.mesh):
                found = run(measure, *arguments, jnp.asarray(np.resize(rows, _MEASURED), jnp.int32))
            margins += np.asarray(found)[: len(rows)].tolist()
        broken += _undefined(request, text, logits, draws, drawn, np.flatnonzero(audited))
    wide = jnp.dtype(model.dtype).itemsize >= 4
    bound = 0.0 if wide or not margins else 4 * _logit_spread(model, text)
    largest = max([*margins, *[MARGIN_LIMIT] * bool(broken)], default=0.0)
    return AuditReport(positions, len(margins) + broken, largest, bound, (bool(margins) and wide) or largest > bound)


def _undefined(
    request: Request, text: list[int], logits: np.ndarray, draws: np.ndarray, drawn: np.ndarray, rows: np.ndarray
) -> int:
    """The number of `rows` of a chunk whose draws, repeated by the rule, are not those of the definition."""
    if not len(rows):
        return 0
    positions = drawn[rows].tolist()
    noise = noise_of(request, positions, logits.shape[1])
    windows = penalty_windows(text, positions, request)
    wrong = 0
    for at, (row, position, recent) in enumerate(zip(rows.tolist(), positions, windows, strict=True)):
        generated, its_noise = position - len(request.prompt_ids), None if noise is None else noise[at]
        wrong += not may_be_drawn(int(draws[row]), logits[row], its_noise, generated, recent, request)
    return wrong


def text_windows(
    tokens: jax.Array, start: jax.Array, settings: SequenceParams, vocab: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions, tokens and penalties of the ROWS draws after positions start.. of a text int32 [1, capacity].

    Returns the drawn positions and the tokens there, int32 [1, ROWS] each, and the tokens that the draws penalise, bool
    [1, ROWS, vocab].
    """
    drawn = (start + 1 + jnp.arange(ROWS, dtype=jnp.int32))[None]
    emitted = jnp.take_along_axis(tokens, drawn, axis=1, mode="clip")
    begin = (start + 1)[None]
    last = penalty.last_positions(tokens, begin, vocab)
    penalised, _ = penalty.text_penalised(last, emitted, begin, settings.penalty_window)
    return drawn, emitted, split_as(penalised, "batch", "rows", "vocab")


def draw_inputs(
    graph: nnx.GraphDef,
    features: SamplingFeatures,
    params: Any,
    hidden: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    first: jax.Array,
    settings: SequenceParams,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """The inputs of the draws of one chunk, [1, ROWS, ...] each: logits, the tokens there, noise (None for greedy
    draws), the tokens that the draws penalise, and how many tokens were generated before each draw."""
    model = nnx.merge(graph, params)
    vocab = model.config.padded_vocab
    with exact_products(hidden.dtype):
        logits = model.logits(hidden)
    drawn, emitted, penalised = text_windows(tokens, start, settings, vocab)
    noise = gumbel_noise(settings.keys, drawn, vocab) if features >= SamplingFeatures.SAMPLED else None
    return logits, emitted, noise, penalised, drawn - first


@functools.cache
def _programs(graph: nnx.GraphDef, features: SamplingFeatures) -> tuple[Callable, Callable]:
    """Two jitted functions of one chunk's hidden states: one returns the draws int32 [ROWS] and their logits [ROWS,
    vocab], the other the margins of the tokens emitted at some rows int32 [_MEASURED]."""

    prepared = functools.partial(draw_inputs, graph, features)

    def redraw(
        params: Any, hidden: jax.Array, tokens: jax.Array, start: jax.Array, first: jax.Array, settings: SequenceParams
    ) -> tuple[jax.Array, jax.Array]:
        logits, _, noise, penalised, generated = prepared(params, hidden, tokens, start, first, settings)
        scores = process(logits, penalised=penalised, generated=generated, settings=settings, features=features)
        return draw(scores, noise)[0], logits[0].astype(wide_dtype(logits.dtype))

    def measure(
        params: Any,
        hidden: jax.Array,
        tokens: jax.Array,
        start: jax.Array,
        first: jax.Array,
        settings: SequenceParams,
        rows: jax.Array,
    ) -> jax.Array:
        logits, emitted, noise, penalised, generated = jax.tree.map(
            lambda values: values[0][rows], prepared(params, hidden, tokens, start, first, settings)
        )
        return margin(
            logits, emitted, noise, penalised=penalised, generated=generated, settings=settings, features=features
        )

    return jax.jit(redraw), jax.jit(measure)


def _logit_spread(model: Model, text: list[int]) -> float:
    """The largest difference between logits of the text's first positions from ROWS and `_NARROW` rows at a time."""
    sample, logits = text[:_SAMPLED_ROWS], _lm_head(model.graphdef)

    def computed(rows: int) -> np.ndarray:
        chunks = []
        for _, hidden in teacher_forced(model, [sample], rows):
            with use(model.mesh):
                chunks.append(np.asarray(run(logits, model.params, hidden))[0])
        return np.concatenate(chunks)[: len(sample)]

    full = computed(ROWS)
    return max(float(np.abs(computed(rows) - full).max()) for rows in _NARROW)


@functools.cache
def _lm_head(graph: nnx.GraphDef) -> Callable:
    return jax.jit(lambda params, hidden: nnx.merge(graph, params).logits(hidden))
