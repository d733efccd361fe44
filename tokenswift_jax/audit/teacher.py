"""Teacher forcing: the target computes finished texts in large causal chunks over an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tokenswift_jax.engine.capacity import check_memory
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.engine.prefill import padded, send_chunk
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.dense import round_up
from tokenswift_jax.parallel.mesh import run

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

ROWS = 256


def teacher_forced(model: Model, texts: list[list[int]], rows: int = ROWS) -> Iterator[tuple[int, jax.Array]]:
    """Yields chunks (start, hidden [batch, rows, hidden_size]) of the texts, hidden before the final norm; hidden rows
    past a text's end are meaningless.

    Args:
      model: the target.
      texts: token ids.
      rows: rows of one forward; a divisor of ROWS, or at most ROWS and enough for the longest text.

    Raises:
      UserError: a text is empty or longer than the model's positions; too little memory.
    """
    longest, limit = max(map(len, texts)), model.config.max_position_embeddings
    if min(map(len, texts)) < 1 or longest > limit:
        raise UserError(f"a text to score holds 1 to {limit} tokens, not {sorted({len(text) for text in texts})}")
    capacity = round_up(longest, ROWS)
    dtype = jnp.dtype(model.dtype)
    advice = "give fewer or shorter texts at once"
    check_memory(model.config, len(texts), capacity, dtype, advice=advice, mesh=model.mesh)
    placement = Placement(model.mesh)
    cache = placement.make(full_cache, model.config, len(texts), capacity, dtype, None, placement.cyclic())
    tokens, forward = padded(texts, capacity), partial(run, model.program("causal"))
    for start in range(0, longest, rows):
        hidden, cache = send_chunk(forward, model, placement, tokens[:, start : start + rows], start, cache)
        yield start, hidden
