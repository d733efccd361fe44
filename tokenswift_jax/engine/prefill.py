"""Prefill: prompts enter a cache chunk by chunk, so that another text can decode between two chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from tokenswift_jax import arrays
from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.kv.dense import FullCache, round_up
from tokenswift_jax.request import Request
from tokenswift_jax.step.loop import compiled
from tokenswift_jax.step.state import DecodeState

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

# Below 150 (A100) to 560 (v6e) rows, prefill is bound by the weights' bandwidth.
ACCELERATOR_ROWS, _CPU_ROWS, _SHORT = 512, 256, 32


def chunk_rows(longest: int) -> int:
    """Rows of one prefill forward for prompts of up to `longest` tokens."""
    long = _CPU_ROWS if jax.default_backend() == "cpu" else ACCELERATOR_ROWS
    return long if longest > _SHORT else _SHORT


def padded(texts: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """The texts as int32 [batch, width], 0 past their ends."""
    tokens = np.zeros((len(texts), width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens


@dataclass(frozen=True)
class Prefix:
    """The beginning of a text whose keys and values are known: a later prompt that begins alike need not compute them.

    Attributes:
      token_ids: the beginning.
      cache: their keys and values, batch 1; slots past the beginning mean nothing.
    """

    token_ids: list[int]
    cache: FullCache


class Prefill:
    """Prompts on their way into a cache of their own.

    Attributes:
      requests: one a row.
      done, total: positions of the longest text that are in the cache, and that have to be.
    """

    def __init__(
        self,
        model: Model,
        programs: CompileCache,
        layout: Layout,
        requests: Sequence[Request],
        emitted: Sequence[Sequence[int]],
        capacity: int | None,
        prefix: Prefix | None,
    ) -> None:
        """Begins; `Engine.prefill` is the way to call it.

        capacity: slots of its cache; None: as many as the texts need. A prefix goes with one request.
        """
        self.requests, self.emitted = list(requests), [list(done) for done in emitted]
        self._model, self._programs, self._layout = model, programs, layout
        self._texts = [[*request.prompt_ids, *done] for request, done in zip(requests, emitted, strict=True)]
        # The step that gave the newest token of a resumed text runs again: its root is the token before.
        self._rooted = [text[:-1] if done else text for text, done in zip(self._texts, self.emitted, strict=True)]
        longest = max(map(len, self._rooted))
        self._rows = chunk_rows(longest)
        needed = round_up(max(map(len, self._texts)) + 1)
        needed = max(needed, round_up(longest, self._rows))
        self.capacity = min(round_up(needed, max(256, 2 ** (needed.bit_length() - 3))), layout.capacity)
        if capacity is not None:
            self.capacity = capacity
        self._ids = padded(self._rooted, self.capacity)
        self._cache = layout.cache(len(requests), self.capacity)
        self.done, self.total = 0, longest - 1
        if prefix is not None:
            self.done = _shared(prefix.token_ids, self._rooted[0][:-1])
            slots = min(self.capacity, prefix.cache.capacity)
            kept = prefix.cache.first(slots)
            self._cache = programs.run(_put_row, self._cache, kept, jnp.zeros((), jnp.int32), name="reuse of a prefix")

    @property
    def finished(self) -> bool:
        """Whether every text is in the cache, its root excepted."""
        return self.done >= self.total

    def advance(self) -> None:
        """Sends the next chunk to the device and returns without waiting for it."""
        if self.finished:
            return
        # A last chunk that would pass the capacity begins earlier: it computes some positions again.
        start = min(self.done, self.capacity - self._rows)
        piece = jnp.asarray(self._ids[:, start : start + self._rows])
        function = compiled("prefill", self._model.graphdef)
        arguments = self._model.params, piece, jnp.asarray(start, jnp.int32), self._cache
        self._cache = self._programs.run(function, *arguments, name="prefill")
        self.done = start + self._rows

    @property
    def newest(self) -> FullCache:
        """What the newest chunk gives: who waits for it waits for all chunks so far."""
        return self._cache

    def state(self) -> DecodeState:
        """The state of the rows, whose next step draws each one's first token; the cache is handed over."""
        lengths = jnp.asarray([len(text) for text in self._rooted], jnp.int32)
        state = self._layout.state(jnp.asarray(self._ids), lengths, self._cache)
        del self._cache
        return state

    @property
    def texts(self) -> list[list[int]]:
        """Token ids of every row, the emitted ones included."""
        return self._texts


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Leading tokens that two texts share."""
    same = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(same, min(len(first), len(second)))


_put_row = jax.jit(arrays.put_row, donate_argnums=0)
