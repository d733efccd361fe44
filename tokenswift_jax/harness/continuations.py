"""Log-likelihoods of continuations of contexts, many texts a forward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenswift_jax.audit.teacher import ROWS, teacher_forced
from tokenswift_jax.kv.dense import round_up
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel.mesh import run, use
from tokenswift_jax.sample.draw import draw
from tokenswift_jax.sample.logprobs import logprobs_of
from tokenswift_jax.scoring import text_by_text
from tokenswift_jax.step.exact_products import exact_products

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

_MOST_ENDS = 16  # each is a column of the program
_WIDTHS = (
    32,
    48,
    64,
    96,
    128,
    192,
    ROWS,
)  # each is a program; between two of them, a text's rows grow by at most a half


@dataclass
class _Text:
    """A text that is computed once, for all continuations that differ in their last token alone.

    Attributes:
      ids: the tokens before the last ones.
      ends: the last tokens asked for, each once.
      askers: the number of each request, its tokens among `ids`, and the place of its last token among `ends`.
    """

    ids: list[int]
    ends: list[int] = field(default_factory=list)
    askers: list[tuple[int, int, int]] = field(default_factory=list)

    def has_room(self, end: int) -> bool:
        """Whether the text may be asked for one more last token."""
        return end in self.ends or len(self.ends) < _MOST_ENDS

    def ask(self, number: int, own: int, end: int) -> None:
        """Adds a request."""
        if end not in self.ends:
            self.ends.append(end)
        self.askers.append((number, own, self.ends.index(end)))


def continuation_scores(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    rows: int,
    most: int | None = None,
    done: Callable[[Mapping[int, tuple[float, bool]]], object] = lambda answers: None,
) -> list[tuple[float, bool]]:
    """For each pair (context, continuation) of token ids, the continuation's log-probability after the context, and
    whether each of its tokens is the likeliest.

    Continuations of one context that differ in their last token alone, such as the letters of a multiple choice, share
    one computation.

    Args:
      model: the target.
      pairs: neither part is empty; together at most one token more than the model's positions.
      rows: the cache's positions for all texts of one forward; a longer text is alone in it.
      most: the most texts of one forward; None: as many as have those positions.
      done: called with the answers that a forward has given, by the numbers of their pairs.

    Raises:
      UserError: a text is longer than the model's positions; too little memory.
    """
    texts: dict[tuple[int, ...], list[_Text]] = {}
    for number, (context, continuation) in enumerate(pairs):
        *ids, end = [*context, *continuation]
        alike = texts.setdefault(tuple(ids), [_Text(ids)])
        if not alike[-1].has_room(end):
            alike.append(_Text(ids))
        alike[-1].ask(number, len(continuation) - 1, end)
    results: dict[int, tuple[float, bool]] = {}
    for batch, width in _batches([text for alike in texts.values() for text in alike], rows, most):
        found: dict[int, tuple[float, bool]] = {}
        for text, values, likeliest in zip(batch, *_scored(model, batch, width), strict=True):
            found |= _answers(text, values, likeliest)
        done(found)
        results |= found
    return [results[number] for number in range(len(pairs))]


def _answers(text: _Text, values: np.ndarray, likeliest: np.ndarray) -> dict[int, tuple[float, bool]]:
    """The answer to each asker, from log-probabilities [n, ends] and the likeliest tokens [n] after each token."""
    hits = likeliest[:-1] == np.asarray(text.ids[1:], np.int32)
    answers = {}
    for number, own, place in text.askers:
        first = len(text.ids) - 1 - own
        total = values[first:-1, 0].sum(dtype=np.float64) + values[-1, place]
        answers[number] = (float(total), bool(hits[first:].all() and likeliest[-1] == text.ends[place]))
    return answers


def _batches(texts: list[_Text], rows: int, most: int | None) -> Iterator[tuple[list[_Text], int]]:
    """Texts of like length, and the rows that each takes: few shapes, so that few programs are compiled."""
    widths: dict[int, list[_Text]] = {}
    for text in texts:
        widths.setdefault(_width(len(text.ids)), []).append(text)
    for width in sorted(widths, reverse=True):  # the longest first: the time that is left is not underestimated
        # The cache has a multiple of ROWS positions for each text.
        size = _power_of_two(min(max(rows // round_up(width, ROWS), 1), most or rows))
        for start in range(0, len(widths[width]), size):
            yield widths[width][start : start + size], width


def _width(length: int) -> int:
    if length > ROWS:
        return round_up(length, ROWS)
    return next(width for width in _WIDTHS if width >= length)


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _scored(model: Model, batch: list[_Text], width: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each text, the log-probabilities float32 [n, ends] of its next tokens, of all its ends at its last token, and
    the likeliest tokens int32 [n]; both are meaningless within the context."""
    ends = max(len(text.ends) for text in batch)
    size, ends = _power_of_two(2 * len(batch) - 1), _power_of_two(2 * ends - 1)
    filled = [*batch, *batch[-1:] * (size - len(batch))]  # a batch of another size would be another program
    targets = np.zeros((size, width, ends), np.int32)
    for row, text in enumerate(filled):
        count = len(text.ids)
        targets[row, : count - 1] = np.asarray(text.ids[1:], np.int32)[:, None]
        targets[row, count - 1, : len(text.ends)] = text.ends
    reduce = _reduction(model.graphdef)
    values, likeliest = np.zeros(targets.shape, np.float32), np.zeros((size, width), np.int32)
    asked = min(len(text.ids) - 1 - max(own for _, own, _ in text.askers) for text in batch)
    for start, hidden in teacher_forced(model, [text.ids for text in filled], rows=min(width, ROWS)):
        chunk = slice(start, start + hidden.shape[1])
        if chunk.stop <= asked:  # contexts alone: nobody asks for their logits
            continue
        with use(model.mesh):
            found = run(reduce, model.params, hidden, targets[:, chunk])
        values[:, chunk], likeliest[:, chunk] = map(np.asarray, found)
    counts = [len(text.ids) for text in batch]
    return [values[row, :count] for row, count in enumerate(counts)], [
        likeliest[row, :count] for row, count in enumerate(counts)
    ]


@functools.cache
def _reduction(graph: nnx.GraphDef) -> Callable:
    def of_texts(model: Decoder, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        with exact_products(hidden.dtype):
            logits = model.logits(hidden)
        columns = [logprobs_of(logits, targets[..., end], 0).values for end in range(targets.shape[-1])]
        return jnp.stack(columns, axis=-1), draw(logits, None)

    return text_by_text(graph, of_texts)
