"""The draft cache against a plain Python model of its contract, over long random commit sequences."""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layers import GROUP, HEAD_DIM, KV_HEADS, LAYERS, config

from tokenswift_jax.arrays import take_row
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_positions import DraftCacheShape

CAPACITY, MOST = 512, 5


@dataclass
class Text:
    """The contract for one text: which positions each layer and head holds after each commit."""

    keys: np.ndarray  # [layers, kv_heads, capacity, head_dim], float64
    shape: DraftCacheShape
    windows: tuple
    committed: int = 0
    selected: int = 0
    stored: dict = field(default_factory=dict)  # (layer, head) -> positions by slot

    def rebuild(self, committed, query):
        self.committed, self.selected = committed, 0
        if committed > self.shape.size:
            return self._select(query)
        self.stored = {at: list(range(committed)) for at in np.ndindex(LAYERS, KV_HEADS)}
        return False

    def commit(self, after, query):
        """Whether a selection fell due."""
        before, self.committed = self.committed, after
        if after == before:
            return False
        replaced = after - self.selected
        if not self.selected:
            if after <= self.shape.size:
                self.stored = {at: list(range(after)) for at in self.stored}
                return False
        elif replaced <= self.shape.size - self.shape.sinks and replaced < (self.shape.refresh_interval or 1 << 30):
            for slots in self.stored.values():
                for position in range(before, after):
                    slots[self.shape.size - 1 - (position - self.selected)] = position
            return False
        return self._select(query)

    def _select(self, query):
        self.selected = self.committed
        for layer, head in np.ndindex(LAYERS, KV_HEADS):
            of_head = query[layer, head * GROUP : (head + 1) * GROUP]
            first = self.shape.sinks
            if self.windows[layer] is not None:
                first = max(first, self.committed - self.windows[layer] + 1)
            positions = np.arange(first, self.committed)
            scores = (self.keys[layer, head, positions] @ of_head.T).sum(axis=1)
            best = positions[np.argsort(-scores)][: self.shape.size - self.shape.sinks].tolist()
            missing = [None] * (self.shape.size - self.shape.sinks - len(best))
            self.stored[layer, head] = [*range(self.shape.sinks), *best, *missing]
        return True


class Bench:
    """Texts with random keys and values, and the compiled cache operations over them."""

    def __init__(self, shape, windows=(None, None), batch=3, seed=0):
        self.config, self.shape, self.rng = config(windows), shape, np.random.default_rng(seed)
        assert self.config.sliding_windows == windows
        stacks = self.rng.normal(size=(2, LAYERS, batch, KV_HEADS, CAPACITY, HEAD_DIM)).astype(np.float32)
        self.keys, self.values = stacks
        self.texts = [Text(self.keys[:, row].astype(np.float64), shape, windows) for row in range(batch)]
        self.draft = shape.empty(self.config, batch, jnp.dtype(jnp.float32))

    def full(self, committed):
        """The full cache, whose slots past each committed length hold NaN."""
        live = np.arange(CAPACITY) < np.asarray(committed)[:, None]
        live = live[None, :, None, :, None]
        return FullCache(
            *(jnp.asarray(np.where(live, stack, np.float32(np.nan))) for stack in (self.keys, self.values))
        )

    def query(self):
        return self.rng.normal(size=(LAYERS, len(self.texts), KV_HEADS * GROUP, HEAD_DIM)).astype(np.float32)

    def rebuild(self, committed):
        query = self.query()
        self.draft = _rebuild(self.draft, self.full(committed), _ints(committed), query, self.config, self.shape)
        fresh = [
            text.rebuild(n, query[:, row]) for row, (text, n) in enumerate(zip(self.texts, committed, strict=True))
        ]
        self.check(fresh)
        return fresh

    def commit(self, counts):
        query, before = self.query(), [text.committed for text in self.texts]
        after = [n + count for n, count in zip(before, counts, strict=True)]
        news = []
        for stack in (self.keys, self.values):
            # what lies past a row's count means nothing
            new = np.full((LAYERS, len(counts), KV_HEADS, MOST, HEAD_DIM), np.nan, np.float32)
            for row, (n, count) in enumerate(zip(before, counts, strict=True)):
                new[:, row, :, :count] = stack[:, row, :, n : n + count]
            news.append(new)
        old = self.draft
        new = StoredKV(*map(jnp.asarray, news))
        self.draft = _advance(old, self.full(after), new, _ints(before), _ints(after), query, self.config, self.shape)
        fresh = [text.commit(n, query[:, row]) for row, (text, n) in enumerate(zip(self.texts, after, strict=True))]
        self.check(fresh)
        for row in np.flatnonzero(np.asarray(counts) == 0):
            jax.tree.map(np.testing.assert_array_equal, *(take_row(x, jnp.int32(row)) for x in (old, self.draft)))
        return fresh

    def check(self, fresh):
        """Positions as sets (in order after a selection), and the keys and values of what is held."""
        stored, cache = np.asarray(self.draft.positions), self.draft.cache
        kept = [(np.asarray(cache.keys), cache.key_scales), (np.asarray(cache.values), cache.value_scales)]
        in_use = np.asarray(self.shape.slots_in_use(_ints([text.committed for text in self.texts])))
        for row, text in enumerate(self.texts):
            assert int(self.draft.selected[row]) == text.selected
            for (layer, head), expected in text.stored.items():
                assert in_use[row] == len(expected)
                slots = stored[layer, row, head, : len(expected)]
                actual = [None if position < 0 else int(position) for position in slots]
                if fresh[row]:
                    assert actual == expected
                assert sorted(actual, key=str) == sorted(expected, key=str)
                fixed = min(self.shape.sinks, len(expected))
                assert actual[:fixed] == list(range(fixed))
                real = slots[slots >= 0]
                for (stack, scales), whole in zip(kept, (self.keys, self.values), strict=True):
                    found = stack[layer, row, head, : len(expected)][slots >= 0]
                    if scales is None:
                        np.testing.assert_array_equal(found, whole[layer, row, head, real])
                    else:
                        step = np.asarray(scales)[layer, row, head, : len(expected)][slots >= 0][:, None]
                        # Rounded to the nearest step: half of one, and float32's own rounding.
                        assert np.all(abs(found * step - whole[layer, row, head, real]) <= 0.5001 * step)


def _ints(values):
    return jnp.asarray(values, jnp.int32)


_advance = jax.jit(lambda *args: args[-1].advance(*args[:-1]), static_argnums=(6, 7))
_rebuild = jax.jit(lambda *args: args[-1].rebuild(*args[:-1]), static_argnums=(4, 5))

PLAIN, INTERVAL = DraftCacheShape(24, 4, 1, None), DraftCacheShape(40, 4, 1, 7)
SHAPES = {
    "used up": (PLAIN, (None, None)),
    "no sinks": (DraftCacheShape(24, 0, 4, None), (None, None)),
    "narrow": (DraftCacheShape(24, 4, 1, None, int8=True), (None, None)),
    "interval": (INTERVAL, (None, None)),
    "interval of one": (DraftCacheShape(20, 4, 1, 1), (None, None)),
    "interval beyond the room": (DraftCacheShape(20, 4, 1, 99), (None, None)),
    "window smaller than the cache": (DraftCacheShape(32, 4, 1, None), (12, None)),
    "window larger than the cache": (DraftCacheShape(24, 4, 1, None), (None, 60)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_long_random_commits(name):
    """Rows of unequal lengths, some frozen at times, each refreshing when its own time has come."""
    bench = Bench(*SHAPES[name], seed=len(name))
    bench.rebuild([1, bench.shape.size - 3, 90])
    refreshed = []
    while max(text.committed for text in bench.texts) < CAPACITY - MOST:
        refreshed.append(bench.commit(bench.rng.choice([0, 1, 2, 3, 5], 3, p=[0.2, 0.3, 0.2, 0.2, 0.1])))
    assert (np.sum(refreshed, axis=0) > 3).all()
    if bench.shape.refresh_interval != 1:
        assert any(sum(rows) == 1 for rows in refreshed)


def test_first_selection_is_at_the_first_length_beyond_the_cache():
    bench = Bench(PLAIN)
    bench.rebuild([22, 23, 24])
    assert bench.commit([2, 1, 0]) == [False, False, False]
    assert bench.commit([0, 1, 1]) == [False, True, True]
    assert [text.selected for text in bench.texts] == [0, 25, 25]


def test_next_selection_is_when_no_replaceable_slot_is_left():
    bench = Bench(PLAIN)
    assert bench.rebuild([60, 60, 60]) == [True, True, True]
    for _ in range(4):
        assert bench.commit([5, 5, 4]) == [False, False, False]
    assert set(np.asarray(bench.draft.positions)[0, 0, 0, 4:24]) == set(range(60, 80))
    assert bench.commit([1, 0, 5]) == [True, False, True]


def test_interval_counts_tokens():
    bench = Bench(INTERVAL)
    bench.rebuild([60, 60, 60])
    refreshed = [bench.commit([1, 2, 5]) for _ in range(12)]
    assert [row[0] for row in refreshed] == ([False] * 6 + [True] + [False] * 5)
    assert [row[1] for row in refreshed] == [False, False, False, True] * 3
    assert [row[2] for row in refreshed] == [False, True] * 6


def test_rebuild_at_any_length_forgets_what_was_there():
    bench = Bench(PLAIN)
    for committed in ([0, 1, 3], [24, 25, 4], [300, 23, 500], [2, 26, 24], [507, 507, 507]):
        bench.rebuild(committed)
        bench.commit([1, 0, 5])


def test_a_cache_as_large_as_the_text_never_selects():
    """Also larger than the full cache's capacity."""
    bench = Bench(DraftCacheShape(CAPACITY + 100, 16, 1, None))
    bench.rebuild([0, 1, 400])
    assert not any(any(bench.commit([5, 1, 5])) for _ in range(20))


def test_rows_do_not_depend_on_each_other():
    """A row in a batch of three is the row alone."""
    shape = PLAIN
    together = Bench(shape, seed=5)
    committed, counts = [30, 7, 120], [3, 0, 5]
    query = together.query()
    draft = _rebuild(together.draft, together.full(committed), _ints(committed), query, together.config, shape)
    after = [n + count for n, count in zip(committed, counts, strict=True)]
    pieces = [
        np.stack([stack[:, row, :, n : n + MOST] for row, n in enumerate(committed)], axis=1)
        for stack in (together.keys, together.values)
    ]
    full = together.full(after)
    draft = _advance(draft, full, StoredKV(*pieces), _ints(committed), _ints(after), query, together.config, shape)
    for row in range(3):
        one = partial(jax.tree.map, lambda x, row=row: x[:, row : row + 1])
        alone = shape.empty(together.config, 1, jnp.dtype(jnp.float32))
        before = together.full(committed)
        alone = _rebuild(
            alone, one(before), _ints(committed[row : row + 1]), query[:, row : row + 1], together.config, shape
        )
        alone = _advance(
            alone,
            one(full),
            one(StoredKV(*pieces)),
            _ints(committed[row : row + 1]),
            _ints(after[row : row + 1]),
            query[:, row : row + 1],
            together.config,
            shape,
        )
        live = min(after[row], shape.size)
        for whole, single in zip(
            (draft.cache.keys, draft.cache.values, draft.positions),
            (alone.cache.keys, alone.cache.values, alone.positions),
            strict=True,
        ):
            np.testing.assert_array_equal(whole[:, row, :, :live], single[:, 0, :, :live])
