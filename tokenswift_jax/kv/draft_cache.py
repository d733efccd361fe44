"""What every kind of draft cache does: the interface between decoding and `draft_positions`, `draft_blocks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.row_batch import RowBatch
from tokenswift_jax.models.config import ModelConfig

_Tree = TypeVar("_Tree")


def when(condition: jax.Array, function: Callable[[_Tree], _Tree], value: _Tree) -> _Tree:
    """function(value) if the condition, bool [], holds, else value; in place.

    A loop of at most one turn: what goes through a conditional is copied on every path, the idle one too.
    """
    return jax.lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros_like(c[0]), function(c[1])), (condition, value))[1]


class DraftKind(Protocol):
    """Static kind and sizes of a draft cache; hashable. What it keeps is a pytree of its own, `draft` below.

    `committed` are int32 [batch], committed lengths n of the text; `query` is [layers, batch, query_heads, head_dim],
    the root's in the pass that committed up to there.
    """

    @property
    def copied_slots(self) -> int:
        """Slots whose keys and values are copied, a row of the batch."""
        ...

    def empty(self, config: ModelConfig, batch: int, dtype: jnp.dtype, cache_dtype: str | None = None) -> Any:
        """A draft cache that holds nothing, of a model of `dtype` whose full cache has numbers of `cache_dtype`."""
        ...

    def rebuild(self, draft: Any, full: FullCache, committed: jax.Array, query: jax.Array, config: ModelConfig) -> Any:
        """The draft cache of a text of any length at once: after prefill, or after decoding that did not keep it."""
        ...

    def advance(
        self,
        draft: Any,
        full: FullCache,
        new: StoredKV,
        before: jax.Array,
        after: jax.Array,
        query: jax.Array,
        config: ModelConfig,
    ) -> Any:
        """Takes in newly committed positions before .. after-1 (int32 [batch] each), whose keys and values are in `new`
        (as many rows as can be committed) and in the full cache; selects again where that falls due."""
        ...

    def view(
        self,
        draft: Any,
        full: FullCache,
        token: jax.Array,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[RowBatch, FullCache]:
        """The row of `token` int32 [batch] at position n + depth (int32 [batch]), after `depth` rows written before it,
        and the cache that it extends."""
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
