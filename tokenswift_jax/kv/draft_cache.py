"""The interface of every kind of draft cache, between decoding and `draft_positions`, `draft_blocks`."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.row_batch import RowBatch
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.stages import of_this_stage

_ALL = 2**30  # more positions than a text has


def reaches(config: ModelConfig) -> jax.Array:
    """How many of the newest positions each layer sees, int32 [layers]: its sliding window, or more than any text has.

    A stage of a mesh gets those of its own layers. A selection loops over the layers: unrolled, it took most of the
    compilation of a program that contains it.
    """
    windows = [_ALL if window is None else window for window in config.sliding_windows]
    return of_this_stage(jnp.asarray(windows, jnp.int32))


class DraftCachePolicy(Protocol):
    """Static kind and sizes of a draft cache; hashable. Its arrays are a separate pytree, `draft` below.

    `committed` is int32 [batch], the committed length n of each text; `query` is [layers, batch, query_heads,
    head_dim], the root's query in the pass that committed those n tokens.
    """

    def empty(self, config: ModelConfig, batch: int, dtype: jnp.dtype, cache_dtype: str | None = None) -> Any:
        """An empty draft cache for a model of `dtype`; `cache_dtype` is the number format of its full cache."""
        ...

    def rebuild(self, draft: Any, full: FullCache, committed: jax.Array, query: jax.Array, config: ModelConfig) -> Any:
        """Builds the draft cache of a text of any length: after prefill, or after a plan that did not update it."""
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
        """Adds the newly committed positions before .. after-1 (int32 [batch] each), and selects again if that is due.

        `new` contains their K/V, in as many rows as a step can commit; the full cache contains them too.
        """
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
        """The next drafted row and the cache that it extends.

        The row is `token` int32 [batch] at position n + depth (int32 [batch]); `depth` drafted rows precede it.
        """
        ...

    def after_write(
        self,
        draft: Any,
        full: FullCache,
        cache: FullCache,
        committed: jax.Array,
        depth: jax.Array,
        config: ModelConfig,
    ) -> tuple[Any, FullCache]:
        """Returns the draft cache and the full cache once `cache`, the view's cache, contains the row at `depth`."""
        ...
