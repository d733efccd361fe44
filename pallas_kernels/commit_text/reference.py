"""The definition in plain jnp."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.commit_text.rows import Acceptance, Committed, Ends, Text, TreeRows

WORD = 32  # token ids per word of a token set


def commit_text(
    tree: TreeRows, text: Text, ends: Ends, depth: int, advance: Callable[..., jax.Array] | None = None
) -> Committed:
    """As `pallas_kernels.commit_text.commit_text`.

    advance: in place of `newest_positions`; None: that.
    """
    acceptance = accept(tree, depth) if tree.tokens.shape[1] > 1 else _root_accepted(tree.draws)
    count, finish = cut(acceptance, jnp.take_along_axis(tree.no_draw, acceptance.path, axis=1), text, ends)
    before, after = text.length, text.length + count
    # Tokens past `count` are scratch, like the cache's slots past the committed ones.
    tokens = write_at(text.tokens, acceptance.emitted, before + 1)
    last = jnp.take_along_axis(acceptance.path, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    last_positions = (advance or newest_positions)(text.last_positions, tokens, before + 1, after + 1, depth + 1)
    return Committed(acceptance, count, last, Text(tokens, after, finish, last_positions))


def accept(tree: TreeRows, depth: int) -> Acceptance:
    """The accepted path."""
    batch = jnp.arange(tree.draws.shape[0], dtype=jnp.int32)[:, None]
    row = jnp.arange(tree.draws.shape[1], dtype=jnp.int32)
    drawn = (tree.tokens == tree.draws.at[batch, tree.parents].get(mode="clip")) | (row == 0)[None]
    agrees = drawn & tree.valid
    # A node is accepted iff it and all its ancestors agree. This decides all levels at once, without a descent.
    on_path = tree.valid & jnp.all(agrees[:, None, :] | ~tree.mask, axis=-1)
    accepted = jnp.sum(on_path, axis=-1, dtype=jnp.int32) - 1
    level = jnp.arange(depth + 1, dtype=jnp.int32)[None]
    reached = on_path[:, None, :] & (tree.depths[:, None, :] == jnp.minimum(level, accepted[:, None])[..., None])
    path = jnp.sum(jnp.where(reached, row[None, None], 0), axis=-1, dtype=jnp.int32)
    # The token of an accepted child is its parent's draw, so the draws along the path are the emitted tokens.
    emitted = jnp.where(level <= accepted[:, None], tree.draws.at[batch, path].get(mode="clip"), -1)
    return Acceptance(path=path, accepted=accepted, emitted=emitted)


def cut(acceptance: Acceptance, no_draw: jax.Array, text: Text, ends: Ends) -> tuple[jax.Array, jax.Array]:
    """The number of emitted tokens that count, int32 [batch], and `Text.finish` after them; no_draw is bool [batch,
    depth + 1], along the path."""
    steps = jnp.arange(acceptance.emitted.shape[1], dtype=jnp.int32)[None, :]
    at_length, at_eos, without_draw = ends.reasons
    remaining = ends.stop_length - (text.length + 1)
    count = jnp.minimum(acceptance.accepted + 1, remaining)
    never = jnp.int32(acceptance.emitted.shape[1])
    end = jnp.where(contains(ends.eos, jnp.maximum(acceptance.emitted, 0)), steps, never).min(axis=1)
    nan = jnp.where(no_draw, steps, never).min(axis=1)
    finish = jnp.where(count >= remaining, at_length, 0)
    finish, count = jnp.where(end < count, at_eos, finish), jnp.minimum(count, end + 1)
    finish, count = jnp.where(nan < count, without_draw, finish), jnp.minimum(count, nan)
    frozen = text.finish != 0
    return jnp.where(frozen, 0, count), jnp.where(frozen, text.finish, finish).astype(jnp.int32)


def contains(sets: jax.Array, tokens: jax.Array) -> jax.Array:
    """Whether each row's set, uint32 [batch, words], contains its tokens, int32 [batch, count]: bool [batch, count]."""
    word = jnp.take_along_axis(sets, tokens // WORD, axis=1, mode="clip")
    return (word >> (tokens % WORD).astype(jnp.uint32)) & jnp.uint32(1) != 0


def newest_positions(
    last: jax.Array, tokens: jax.Array, before: jax.Array, after: jax.Array, most: int, first: int | jax.Array = 0
) -> jax.Array:
    """`Text.last_positions` after texts grew from lengths `before` to `after` (int32 [batch], in tokens), by `most`
    tokens at most; `last` has the columns of the ids from `first` on."""
    positions = before[:, None] + jnp.arange(most, dtype=jnp.int32)[None, :]
    new = jnp.take_along_axis(tokens, positions, axis=1, mode="clip") - first
    # Without the lower bound, JAX takes a negative index for one from the end.
    new = jnp.where((positions < after[:, None]) & (new >= 0), new, last.shape[1])
    rows = jnp.arange(last.shape[0], dtype=jnp.int32)[:, None]
    return last.at[rows, new].max(positions, mode="drop")


def write_at(whole: jax.Array, new: jax.Array, starts: jax.Array) -> jax.Array:
    """Writes new [batch, count, ...] into an array [batch, size, ...] at starts int32 [batch] of its second dimension.

    The program is the same for every batch size, unlike one update per row. The caller keeps starts + count within the
    size.
    """
    if whole.shape[0] == 1:
        at = (jnp.int32(0), starts[0], *[jnp.int32(0)] * (whole.ndim - 2))
        return jax.lax.dynamic_update_slice(whole, new, at)
    return jax.vmap(lambda row, part, start: jax.lax.dynamic_update_slice_in_dim(row, part, start, 0))(
        whole, new, starts
    )


def _root_accepted(draws: jax.Array) -> Acceptance:
    """The acceptance of a tree that contains only its root."""
    zeros = jnp.zeros_like(draws)
    return Acceptance(path=zeros, accepted=zeros[:, 0], emitted=draws)
