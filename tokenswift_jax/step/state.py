"""The state of a decode: one frozen pytree that every jitted step takes (donated) and returns."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from tokenswift_jax.arrays import apart, axes, pytree
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.sample.params import SequenceParams
from tokenswift_jax.speculate.drafter import DrafterState


@pytree
class DecodeState:
    """The state of a batch of texts between two iterations.

    Attributes:
      tokens: int32 [batch, text_capacity], the text by position: prompt, then emitted tokens; entries past the root are
        meaningless.
      length: int32 [batch], committed positions n; tokens[n] is the root.
      finish: int32 [batch], `Finish`.
      cache: the full cache, K/V of positions 0 .. n-1.
      hidden: [batch, hidden_size], the last layer's output (before the final norm) whose logits drew the root.
      query: [layers, batch, query_heads, head_dim], the root's rotated queries in the latest pass.
      last_positions: int32 [batch, vocab], newest position of each token in the text (`penalty.last_positions`).
      drafter: the state of the drafter, one pytree for each of its parts. A step takes and returns the parts of its
        plan's drafter; between two steps an engine keeps the parts of all its plans (`Layout.parts`).
    """

    tokens: jax.Array = axes("batch", "positions")
    length: jax.Array = axes("batch")
    finish: jax.Array = axes("batch")
    cache: FullCache
    hidden: jax.Array = axes("batch", "embed")
    query: jax.Array = axes("layers", "batch", "heads", "head_dim")
    last_positions: jax.Array = axes("batch", "vocab")
    drafter: DrafterState = apart("batch", "layers", "kv_heads", "head_dim", "vocab")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepInputs:
    """The inputs that a step reads and never changes.

    Attributes:
      params: the decoder's parameters (`nnx.split`).
      draft_params: the parameters of `Plan.draft_graph`; None where no plan has one.
      sequence: the settings of every row: how tokens are drawn, where texts end.
    """

    params: object
    sequence: SequenceParams
    draft_params: object | None = None
