"""Prefill: prompts enter a cache chunk by chunk, so that other rows can decode between two chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.engine.placement import Placement
from tokenswift_jax.engine.prompt_stream import PromptStream
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import BLOCK, FullCache, round_up
from tokenswift_jax.parallel.context import owned
from tokenswift_jax.parallel.mesh_spec import DATA, STAGE
from tokenswift_jax.parallel.rows import LAYERS, of_group, over_rows
from tokenswift_jax.parallel.rules import placed
from tokenswift_jax.request import Request
from tokenswift_jax.step.loop import compiled
from tokenswift_jax.step.state import DecodeState
from tokenswift_jax.step.stream import Tick, no_rows

if TYPE_CHECKING:
    from tokenswift_jax.model import Model

# Below 150 (A100) to 560 (v6e) rows per matmul, weight bandwidth limits prefill.
ACCELERATOR_ROWS, _SHORT = 512, 32
# A CPU pays for every row: SmolLM2 takes 0.1 s for 64 and 0.7 s for 256. For 6,144 positions, 256 rows a chunk took
# 22.1 s, 128 took 22.6 s and 64 took 28.2 s (two cores).
_CPU_ROWS, _CPU_QUESTION = 256, 64
_COPIED = 8  # parts of a prefix that enter a cache at once: a chunk of a text may take its turn after them


def chunk_widths() -> tuple[int, ...]:
    """The numbers of positions per row that a prefill forward may have, in ascending order; each is one program."""
    if jax.default_backend() == "cpu":
        return (_SHORT, _CPU_QUESTION, _CPU_ROWS)
    return (_SHORT, ACCELERATOR_ROWS)


def chunk_rows(longest: int) -> int:
    """Positions per row of one prefill forward, for prompts of up to `longest` tokens."""
    return next((width for width in chunk_widths() if width >= longest), chunk_widths()[-1])


def stream_rows(longest: int, chunks: int) -> int:
    """As `chunk_rows`, for a prompt in so many chunks on a mesh with stages."""
    if jax.default_backend() != "cpu":
        return chunk_rows(longest)  # fewer rows than that would each read the weights for themselves
    # With two forwards a chunk or more, chunks can be cut to cost about the same.
    return next((width for width in chunk_widths()[::-1] if 2 * width * chunks <= longest), _SHORT)


def padded(texts: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """The token ids of all rows as int32 [batch, width], 0 past the end of each row."""
    tokens = np.zeros((len(texts), width), np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return tokens


def send_chunk(
    forward: Callable[..., Any], model: Model, placement: Placement, tokens: np.ndarray, start: int, cache: FullCache
) -> Any:
    """Sends a chunk of texts to the devices: the result of `forward` (of `loop.causal_chunk` or `loop.prefill_chunk`).

    Args:
      forward: sends the program (`parallel.mesh.run`); called with the parameters and the chunk.
      model: the target.
      placement: the devices.
      tokens: int32 [batch, rows], the texts' tokens from `start` on.
      start: position of the first of them.
      cache: with the K/V of earlier positions; it is donated.
    """
    piece = placement.rows_of(tokens)
    with placement.in_use():
        return forward(model.params, piece, jnp.asarray(start, jnp.int32), cache)


@dataclass(frozen=True)
class Prefix:
    """The first tokens of a text with their K/V: a later prompt with the same first tokens need not compute the K/V.

    Attributes:
      token_ids: the first tokens.
      parts: their K/V, `BLOCK` positions each, on the device or the host; those past the first tokens have no meaning.
    """

    token_ids: Sequence[int]
    parts: Sequence[StoredKV]


class Prefill:
    """A prefill in progress: it writes the prompts into a cache of its own.

    Attributes:
      requests: one per row.
      done, total: positions of the longest row that are in the cache, and that must be there at the end.
      aligned: positions computed in chunks that begin at multiples of a chunk's size, or taken from a prefix. Their
        K/V are those that every prompt with the same first tokens computes, bit for bit.
      reused: positions that come from a prefix.
      stream: on a mesh with stages, the chunks in which the prompts go through them; else None.
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
        *,
        keep_hidden: bool = False,
    ) -> None:
        """Allocates the cache; callers use `Engine.prefill`.

        capacity: slots per row of the cache; None: as many as the rows need. A prefix requires a single request.
        keep_hidden: keep the last layer's output of the newest chunks for `hidden`.
        """
        self._keeps, self._hidden = keep_hidden, []
        self.requests, self.emitted = list(requests), [list(done) for done in emitted]
        self._model, self._programs, self._layout = model, programs, layout
        self._forward = model.program("causal" if keep_hidden else "prefill")
        self._texts = [[*request.prompt_ids, *done] for request, done in zip(requests, emitted, strict=True)]
        # A resumed row repeats the step that gave its newest token: its root is the token before that.
        self._rooted = [text[:-1] if done else text for text, done in zip(self._texts, self.emitted, strict=True)]
        longest = max(map(len, self._rooted))
        # Without the bound, the last chunk of a small cache would begin before slot 0 (accelerators: 512 rows a chunk).
        chunks = model.prompt_chunks
        self._rows = min(chunk_rows(longest) if chunks is None else stream_rows(longest, chunks), layout.capacity)
        needed = round_up(max(map(len, self._texts)) + 1)
        needed = max(needed, round_up(longest, self._rows))
        self.capacity = min(round_up(needed, max(256, 2 ** (needed.bit_length() - 3))), layout.capacity)
        if capacity is not None:
            assert needed <= capacity or capacity == layout.capacity, f"{capacity} slots are too few for {needed}"
            self.capacity = capacity
        self._ids = padded(self._rooted, self.capacity)
        self._placement = Placement(model.mesh)
        self._cache = self._placement.make(Layout.cache, layout, len(requests), self.capacity)
        self.done, self.total = 0, longest - 1
        self.aligned = self.reused = 0
        self._parts: Sequence[StoredKV] = ()
        if prefix is not None:
            # To a whole number of chunks: those that follow begin where they would without the prefix. And of parts,
            # which are longer than the chunks of a stream.
            whole = math.lcm(self._rows, BLOCK)
            self.reused = _shared(prefix.token_ids, self._rooted[0][:-1]) // whole * whole
            self._parts = prefix.parts[: self.reused // BLOCK]
        self.stream, self._tick = None, 0
        if chunks is not None and self.reused < self.total:
            self._forward, positions = model.program("tick"), range(self.reused, self.total)
            given = self._placement.sizes[STAGE], chunks, self._rows, positions, self.capacity, len(requests)
            self.stream = PromptStream.of(layout.config, *given)
            sizes = self.stream.stages, len(requests), self.stream.most, self._rows, layout.config.hidden_size
            self._flow = self._placement.make(no_rows, *sizes, layout.dtype)

    @property
    def finished(self) -> bool:
        """Whether every row is in the cache, except for its root."""
        return self.done >= self.total

    def advance(self) -> None:
        """Sends the next chunk to the device and returns without waiting for it."""
        if self.done < self.reused:
            self._copy()
            return
        if self.finished:
            return
        if self.stream is not None:
            self._advance(self.stream)
            return
        # Begin a last chunk early enough to end within the capacity: it computes some positions again.
        start = min(self.done, self.capacity - self._rows)
        forward = partial(self._programs.run, self._forward, name="prefill")
        texts = self._ids[:, start : start + self._rows]
        result = send_chunk(forward, self._model, self._placement, texts, start, self._cache)
        if self._keeps:
            hidden, self._cache = result
            self._hidden = [*self._hidden[-1:], (start, hidden)]  # the last chunk alone may be short
        else:
            self._cache = result
        if start == self.done:
            self.aligned = start + self._rows
        self.done = start + self._rows

    def _copy(self) -> None:
        """Sends the next parts of the prefix to the device."""
        first = self.done // BLOCK
        with self._placement.in_use():
            for number, part in enumerate(self._parts[first : first + _COPIED], first):
                start = jnp.asarray(number * BLOCK, jnp.int32)
                part = self._placement.put(part)
                self._cache = self._programs.run(_put, self._cache, part, start, name="reuse of a prefix")
                self.done += BLOCK
        self.aligned = self.done

    def compile_reuse(self) -> None:
        """Compiles the programs that write and read parts of this cache; it contains nothing yet."""
        with self._placement.in_use():  # it places scalars, too
            zero = jnp.zeros((), jnp.int32)
            read = self._programs.run(read_part, self._cache, zero, zero, name="a part of a prefix")
            part = self._placement.put(jax.tree.map(np.asarray, read))
            self._cache = self._programs.run(_put, self._cache, part, zero, name="reuse of a prefix")

    def part(self, number: int) -> StoredKV:
        """Sends a copy of the K/V of a single row's positions from `number` * `BLOCK` on to the device's queue."""
        with self._placement.in_use():
            zero, start = jnp.zeros((), jnp.int32), jnp.asarray(number * BLOCK, jnp.int32)
            return self._programs.run(read_part, self._cache, zero, start, name="a part of a prefix")

    def _advance(self, stream: PromptStream) -> None:
        """Sends the next tick of the stream: a chunk enters the first stage, and one leaves the last."""
        chunks = [stream.forwards(self._tick - stage) for stage in range(stream.stages)]
        starts = np.zeros((stream.stages, stream.most), np.int32)
        for stage, forwards in enumerate(chunks):
            starts[stage, : len(forwards)] = [stream.starts[forward] for forward in forwards]
        tokens = np.stack([self._ids[:, start : start + stream.rows] for start in starts[0]], axis=1)
        work: Any = tokens, starts, np.asarray([len(forwards) for forwards in chunks], np.int32)
        tick = self._placement.put(Tick(*work))
        with self._placement.in_use():
            given = self._model.params, tick, self._flow, self._cache
            self._flow, self._cache = self._programs.run(self._forward, *given, name="prefill")
            for place, forward in enumerate(chunks[-1]):
                self.done = stream.starts[forward] + stream.rows
                if self._keeps and forward >= len(stream.starts) - 2:
                    left = self._flow.hidden.at[0, :, place].get(out_sharding=P())  # on all devices, to be read
                    self._hidden = [*self._hidden[-1:], (stream.starts[forward], left)]
        self._tick += 1
        if self.finished:
            del self._flow

    def hidden(self, rows: int) -> list[tuple[np.ndarray, int]]:
        """For each of the first `rows` rows: the last layer's output [positions, hidden_size] of its newest positions,
        and the first of these.

        The host cuts them: JAX would compile a program for every place of a cut.
        """
        read = [(start, self._placement.read(hidden)) for start, hidden in self._hidden]
        found = []
        for row in range(rows):
            (first, hidden), *later = read
            parts = [hidden[row]]
            for start, more in later:
                parts.append(more[row, first + sum(map(len, parts)) - start :])
            found.append((np.concatenate(parts), first))
        return found

    @property
    def rooted(self) -> list[list[int]]:
        """Token ids of every row, up to the root of its next step."""
        return self._rooted

    @property
    def newest(self) -> FullCache:
        """The cache after the newest chunk; a caller that waits for it waits for all chunks so far."""
        return self._cache

    def state(self) -> DecodeState:
        """The state of the rows, which takes over the cache; its next step draws the first token of each row."""
        lengths = np.asarray([len(text) for text in self._rooted], np.int32)
        given = self._placement.rows_of(self._ids), self._placement.rows_of(lengths)
        # As one program: JAX would trace its parts for every prompt (cost: 3 ms).
        with self._placement.in_use():
            state = self._programs.run(compiled("state", None, self._layout), *given, name="the state of new rows")
        state = replace(state, cache=self._cache)
        del self._cache
        return state

    @property
    def texts(self) -> list[list[int]]:
        """Token ids of every row, including the emitted tokens."""
        return self._texts


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two rows share."""
    same = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(same, min(len(first), len(second)))


@partial(jax.jit, donate_argnums=0)
def _put(cache: FullCache, part: StoredKV, start: jax.Array) -> FullCache:
    """The cache of a single text with a part from a position on."""

    def put(cache: FullCache, part: StoredKV, start: jax.Array) -> FullCache:
        return cache.append(jnp.zeros((), jnp.int32), part, start[None])

    return placed(over_rows(put, (cache, part, start), 0, batch=1))


@jax.jit
def read_part(cache: FullCache, slot: jax.Array, start: jax.Array) -> StoredKV:
    """The K/V of `BLOCK` positions of a slot (`FullCache.part`), on every group of a mesh."""
    batch = cache.keys.shape[1]

    def read(cache: FullCache, slot: jax.Array, start: jax.Array) -> StoredKV:
        place, mine = of_group(slot, cache.keys.shape[1], batch)
        part = cache.part(place, start)
        return part if mine is None else jax.tree.map(lambda values: owned(values, mine, DATA), part)

    return placed(over_rows(read, (cache, slot, start), LAYERS, batch))
