"""The penalty window (paper, Eq. 3), stored as the newest position of every token.

A token is in the window q-window..q-1 exactly when its newest position before q is at least q - window. The window
therefore slides by comparison, no entry ever leaves the state, and tree rows of different depths share it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Older than any window reaches: q - window >= -(2**31 - 1) for every int32 q >= 0 and window.
_NEVER = -(2**31)


def last_positions(tokens: jax.Array, count: jax.Array, vocab: int) -> jax.Array:
    """The newest position of every token in a text; it scans the whole text, for a start or a resume.

    Args:
      tokens: [batch, capacity] int32; the first `count` are the text.
      count: [batch] int32.
      vocab: size of the vocabulary.

    Returns:
      [batch, vocab] int32, -2**31 for a token that does not occur.
    """
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)

    def one(tokens: jax.Array, count: jax.Array) -> jax.Array:
        seen = jnp.where(positions < count, positions, _NEVER)
        return jnp.full((vocab,), _NEVER, jnp.int32).at[tokens].max(seen, mode="drop")

    return jax.vmap(one)(tokens, count)


def row_penalised(
    last: jax.Array, next_position: jax.Array, path_tokens: jax.Array, depths: jax.Array, window: jax.Array
) -> jax.Array:
    """The tokens that each tree row's draw penalises: those at q-window..q-1 along its own path, q = n + depth + 1.

    Args:
      last: [batch, vocab] int32, `last_positions` of the text up to the root.
      next_position: [batch] int32, n + 1.
      path_tokens: [batch, rows, max_depth] int32; entry j is the path's token at depth j + 1, the row's own token comes
        last, and entries from the row's depth on are ignored. With max_depth 0 (autoregressive decoding) only the
        root's window counts.
      depths: [batch, rows] int32, 0 for the root.
      window: [batch] int32, positions; 2**31 - 1 for the whole text.

    Returns:
      [batch, rows, vocab] bool.
    """
    oldest = next_position[:, None] + depths - window[:, None]
    penalised = last[:, None, :] >= oldest[:, :, None]
    vocabulary = jnp.arange(last.shape[1], dtype=jnp.int32)
    for j in range(path_tokens.shape[2]):
        inside = (j < depths) & (j >= depths - window[:, None])
        token = jnp.where(inside, path_tokens[:, :, j], jnp.int32(-1))
        penalised |= vocabulary[None, None, :] == token[:, :, None]
    return penalised


def text_penalised(
    last: jax.Array, tokens: jax.Array, start: jax.Array, window: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The tokens that the draws of consecutive positions of a finished text penalise.

    Args:
      last: [batch, vocab] int32, `last_positions` of the first `start` tokens.
      tokens: [batch, count] int32, the tokens at positions start..start+count-1.
      start: [batch] int32.
      window: [batch] int32, positions; 2**31 - 1 for the whole text.

    Returns:
      [batch, count, vocab] bool, entry i for the draw of position start + i (its own token not included); and
      `last_positions` of the first start + count tokens.
    """
    vocabulary = jnp.arange(last.shape[1], dtype=jnp.int32)

    def step(carry: tuple[jax.Array, jax.Array], token: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        last, position = carry
        penalised = last >= (position - window)[:, None]
        last = jnp.where(vocabulary[None, :] == token[:, None], position[:, None], last)
        return (last, position + 1), penalised

    (last, _), penalised = jax.lax.scan(step, (last, start), tokens.T)
    return jnp.swapaxes(penalised, 0, 1), last
