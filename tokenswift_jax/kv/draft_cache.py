"""What every kind of draft cache does: the interface between decoding and `draft`, `blocks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.config import ModelConfig

_Tree = TypeVar("_Tree")


def when(condition: jax.Array, function: Callable[[_Tree], _Tree], value: _Tree) -> _Tree:
    """function(value) if the condition, bool [], holds, else value; in place.

    A loop of at most one turn: what goes through a conditional is copied on every path, the idle one too.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), function(c[1])), (condition, value))[1]


@dataclass(frozen=True)
class DraftView:
    """What one row of a draft forward reads, as `decoding.forward.forward_rows` takes it.

    Attributes:
      cache: whose first slots it reads, and in whose next slot its own keys and values are laid.
      lengths: int32 [batch], slots in use.
      key_positions: int32 [layers, batch, kv_heads, slots] where slots are not in text order and a window asks.
      blocks: int32 [layers, batch, kv_heads, table], the only blocks of `block_size` slots it reads; None: all slots.
      block_size: slots a block; None without blocks.
    """

    cache: FullCache
    lengths: jax.Array
    key_positions: jax.Array | None
    blocks: jax.Array | None
    block_size: int | None


class DraftKind(Protocol):
    """Static kind and sizes of a draft cache; hashable. What it keeps is a pytree of its own, `draft` below.

    `committed` are int32 [batch], committed lengths n of the text; `query` is [layers, batch, query_heads, head_dim],
    the root's in the pass that committed up to there.
    """

    @property
    def copied_slots(self) -> int:
        """Slots whose keys and values are copied, a row of the batch."""
        ...

    def empty(self, config: ModelConfig, batch: int, dtype: jnp.dtype) -> Any:
        """A draft cache that holds nothing."""
        ...

    def rebuild(self, draft: Any, full: FullCache, committed: jax.Array, query: jax.Array, config: ModelConfig) -> Any:
        """The draft cache of a text of any length at once: after prefill, or after decoding that did not keep it."""
        ...

    def advance(
        self,
        draft: Any,
        full: FullCache,
        new_keys: jax.Array,
        new_values: jax.Array,
        before: jax.Array,
        after: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> Any:
        """Takes in newly committed positions before .. after-1 (int32 [batch] each), whose keys and values are
        [layers, batch, kv_heads, most, head_dim] and in the full cache too; selects anew where that falls due."""
        ...

    def view(
        self, draft: Any, full: FullCache, committed: jax.Array, depth: jax.Array, config: ModelConfig
    ) -> DraftView:
        """What the row at position n + depth (int32 [batch]) reads, after `depth` rows written before it."""
        ...

    def written(
        self,
        draft: Any,
        full: FullCache,
        cache: FullCache,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[Any, FullCache]:
        """The draft cache and the full cache once `cache`, the view's, holds the row at `depth`."""
        ...
