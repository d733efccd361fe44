"""Prefill: from prompts to the state in which the last prompt token is the root."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.kv.dense import FullCache, empty_cache
from tokenswift_jax.kv.draft_cache import DraftKind
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.sample import penalty
from tokenswift_jax.speculate import ngram, ngram_calibration
from tokenswift_jax.step.loop import compiled
from tokenswift_jax.step.state import RUNNING, DecodeState

# Accelerators read bfloat16 weights in the time of some 150 (A100) to 560 (v6e) rows' products, and wait below that.
ACCELERATOR_ROWS, _CPU_ROWS, _SHORT = 512, 256, 32


def chunk_rows(longest: int) -> int:
    """Rows of one prefill forward for prompts of up to `longest` tokens."""
    long = _CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    return long if longest > _SHORT else _SHORT


def padded(texts: list[list[int]], width: int) -> np.ndarray:
    """The texts as int32 [batch, width], 0 past their ends."""
    tokens = np.zeros((len(texts), width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens


def prefill(
    programs: CompileCache,
    graph: Any,
    params: Any,
    config: ModelConfig,
    texts: list[list[int]],
    capacity: int,
    *,
    ngram_slots: int | None,
    calibrate: bool,
    draft: DraftKind | None,
    cache_dtype: str | None = None,
) -> DecodeState:
    """The state of texts whose last tokens are roots: everything before them is in the cache.

    Args:
      programs: where its executables are compiled and kept.
      graph, params, config: the decoder.
      texts: token ids, at least one each.
      capacity: slots of the cache; at least the longest text rounded up to the chunk.
      ngram_slots: slots of the n-gram table, None for no table (`loop.catch_up` fills it).
      calibrate: whether the state keeps how the n-grams fare.
      draft: kind and sizes of the draft cache, None for none (`loop.catch_up` fills it).
      cache_dtype: of the full cache's numbers, as `kv.dense.empty_cache` takes it.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    ids = padded(texts, capacity)
    tokens = jnp.asarray(ids)
    lengths = jnp.asarray([len(text) for text in texts], jnp.int32)
    cache = empty_cache(config, len(texts), capacity, dtype, cache_dtype)
    rows = chunk_rows(max(map(len, texts)))
    function = compiled("prefill", graph)
    for start in range(0, max(map(len, texts)) - 1, rows):
        piece = jnp.asarray(ids[:, start : start + rows])
        cache = programs.run(function, params, piece, jnp.asarray(start, jnp.int32), cache)
    return first_state(
        config,
        tokens,
        lengths,
        cache,
        ngram_slots=ngram_slots,
        calibrate=calibrate,
        draft=draft,
    )


def first_state(
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    cache: FullCache,
    *,
    ngram_slots: int | None,
    calibrate: bool,
    draft: DraftKind | None,
) -> DecodeState:
    """The state of texts int32 [batch, capacity] of `lengths` int32 [batch] tokens whose cache is filled; their tables
    and draft caches are empty. The other arguments are those of `prefill`."""
    batch, dtype = lengths.shape[0], cache.dtype
    return DecodeState(
        tokens=tokens,
        length=lengths - 1,
        finish=jnp.full((batch,), RUNNING, jnp.int32),
        cache=cache,
        hidden=jnp.zeros((batch, config.hidden_size), dtype),
        query=jnp.zeros((config.num_layers, batch, config.num_heads, config.head_dim), dtype),
        last_positions=penalty.last_positions(tokens, lengths, config.vocab_size),
        ngrams=None if ngram_slots is None else ngram.empty(batch, config.vocab_size, ngram_slots),
        ngram_trust=ngram_calibration.unobserved(batch) if calibrate else None,
        draft=None if draft is None else draft.empty(config, batch, dtype, cache.cache_dtype),
    )
