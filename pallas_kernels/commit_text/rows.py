"""The arguments and results of `commit_text`."""

from __future__ import annotations

from typing import NamedTuple

import jax


class TreeRows(NamedTuple):
    """A verified tree and the target's draws; parents precede children, row 0 is the root.

    Attributes:
      tokens, parents, depths: int32 [batch, rows]; 0 where invalid.
      valid: bool [batch, rows]; the root is always valid.
      mask: bool [batch, rows, rows]; a row sees its ancestors and itself.
      draws: int32 [batch, rows], the target's token after each row; meaningless where invalid.
      no_draw: bool [batch, rows], whether there is no such token.
    """

    tokens: jax.Array
    parents: jax.Array
    depths: jax.Array
    valid: jax.Array
    mask: jax.Array
    draws: jax.Array
    no_draw: jax.Array


class Text(NamedTuple):
    """Texts of a batch.

    Attributes:
      tokens: int32 [batch, capacity], the text by position; entries past the root are scratch.
      length: int32 [batch], committed positions n; tokens[n] is the root.
      finish: int32 [batch], 0 for a text that goes on.
      last_positions: int32 [batch, vocab], the newest position of each token in the text.
    """

    tokens: jax.Array
    length: jax.Array
    finish: jax.Array
    last_positions: jax.Array


class Ends(NamedTuple):
    """The ends of texts.

    Attributes:
      stop_length: int32 [batch], length in tokens at which the text ends.
      eos: uint32 [batch, words], the set of ids that end the text: id i is bit i % 32 of word i // 32.
      reasons: static, the values of `Text.finish` at the stop length, at an EOS and at a row without a draw.
    """

    stop_length: jax.Array
    eos: jax.Array
    reasons: tuple[int, int, int]


class Acceptance(NamedTuple):
    """The accepted path of a tree.

    Attributes:
      path: int32 [batch, depth + 1], rows from the root to the last accepted one, which then repeats.
      accepted: int32 [batch], number m of accepted nodes.
      emitted: int32 [batch, depth + 1], the m accepted tokens, the draw of the last accepted row, then -1.
    """

    path: jax.Array
    accepted: jax.Array
    emitted: jax.Array


class Committed(NamedTuple):
    """The texts after an iteration.

    Attributes:
      acceptance: the accepted path.
      count: int32 [batch], the emitted tokens that count; 0 for a text that had ended.
      last: int32 [batch], the row that drew the newest token.
      text: the texts with these tokens.
    """

    acceptance: Acceptance
    count: jax.Array
    last: jax.Array
    text: Text
