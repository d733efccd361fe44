"""The draft cache as a table of blocks, against a plain Python model of its contract over long random commits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_layers import GROUP, HEAD_DIM, KV_HEADS, LAYERS, config

from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_blocks import BlockTableShape

CAPACITY, MOST = 512, 12
SHAPES = {
    "used up": (BlockTableShape(64, 8, 1, None, 16), (None, None)),
    "no sinks, a chain, an interval": (BlockTableShape(96, 0, 4, 29, 16), (None, None)),
    "least room, a chain": (BlockTableShape(48, 16, 4, None, 16), (None, None)),
    "windows": (BlockTableShape(96, 20, 1, None, 16), (40, None)),
}


class Text:
    """The contract for one text: which blocks each layer and head sees, as a list in the order of the table."""

    def __init__(self, keys, shape, windows):
        self.keys, self.shape, self.windows = keys, shape, windows  # [layers, kv_heads, capacity, head_dim], float64
        self.committed = self.selected = 0
        self.chosen = {}

    @property
    def newest(self):
        """The block of the last slot that a drafted chain reads."""
        return (self.committed + self.shape.scratch - 2) // self.shape.block

    def rebuild(self, committed, query):
        self.committed, self.selected = committed, 0
        return self._select_if_due(query)

    def commit(self, after, query):
        if after == self.committed:
            return False
        self.committed = after
        return self._select_if_due(query)

    def seen(self):
        entries = self.shape.size // self.shape.block
        if not self.selected:
            return {at: list(range(entries)) for at in np.ndindex(LAYERS, KV_HEADS)}
        seen = {at: list(blocks) for at, blocks in self.chosen.items()}
        first = (self.selected - 1) // self.shape.block + 1
        for index, block in enumerate(range(first, self.newest + 1), 1):
            for blocks in seen.values():
                blocks[-index] = block
        return seen

    def _select_if_due(self, query):
        shape = self.shape
        entries, sinks = shape.size // shape.block, -(-shape.sinks // shape.block)
        if not self.selected:
            due = self.newest >= entries
        else:
            due = self.newest - (self.selected - 1) // shape.block > entries - sinks - 1
            due |= shape.refresh_interval is not None and self.committed - self.selected >= shape.refresh_interval
        if not due:
            return False
        self.selected, present = self.committed, (self.committed - 1) // shape.block
        for layer, head in np.ndindex(LAYERS, KV_HEADS):
            first = 0 if self.windows[layer] is None else self.committed - self.windows[layer] + 1
            of_head = query[layer, head * GROUP : (head + 1) * GROUP]
            best = {}
            for position in range(max(first, sinks * shape.block), present * shape.block):
                score = (self.keys[layer, head, position] @ of_head.T).sum()
                block = position // shape.block
                best[block] = max(score, best.get(block, -np.inf))
            ranked = sorted(best, key=best.get, reverse=True)[: entries - sinks - 1]
            missing = [-1] * (entries - sinks - 1 - len(ranked))
            self.chosen[layer, head] = [*range(sinks), present, *ranked, *missing]
        return True


class Bench:
    """Texts with random keys, and the compiled table operations over them."""

    def __init__(self, shape, windows, batch=3, seed=0):
        self.config, self.shape, self.rng = config(windows), shape, np.random.default_rng(seed)
        self.keys = self.rng.normal(size=(LAYERS, batch, KV_HEADS, CAPACITY, HEAD_DIM)).astype(np.float32)
        self.texts = [Text(self.keys[:, row].astype(np.float64), shape, windows) for row in range(batch)]
        self.table = shape.empty(self.config, batch, jnp.dtype(jnp.float32))

    def full(self, committed):
        """The full cache; slots past each committed length hold NaN, and so do all values, which no table needs."""
        live = np.arange(CAPACITY) < np.asarray(committed)[:, None]
        keys = np.where(live[None, :, None, :, None], self.keys, np.float32(np.nan))
        return FullCache(jnp.asarray(keys), jnp.full_like(keys, np.nan))

    def query(self):
        return self.rng.normal(size=(LAYERS, len(self.texts), KV_HEADS * GROUP, HEAD_DIM)).astype(np.float32)

    def rebuild(self, committed):
        query = self.query()
        self.table = _rebuild(self.shape, self.table, self.full(committed), _ints(committed), query, self.config)
        fresh = [
            text.rebuild(n, query[:, row]) for row, (text, n) in enumerate(zip(self.texts, committed, strict=True))
        ]
        self.check()
        return fresh

    def commit(self, counts):
        query, before = self.query(), [text.committed for text in self.texts]
        after = [n + count for n, count in zip(before, counts, strict=True)]
        new = jnp.full((LAYERS, len(counts), KV_HEADS, MOST, HEAD_DIM), np.nan, jnp.float32)  # the table needs none
        arguments = (self.full(after), StoredKV(new, new), _ints(before), _ints(after), query)
        self.table = _advance(self.shape, self.table, *arguments, self.config)
        fresh = [text.commit(n, query[:, row]) for row, (text, n) in enumerate(zip(self.texts, after, strict=True))]
        self.check()
        return fresh

    def check(self):
        committed = [text.committed for text in self.texts]
        blocks = np.asarray(self.shape.blocks(self.table, _ints(committed)))
        for row, text in enumerate(self.texts):
            assert int(self.table.selected[row]) == text.selected
            for (layer, head), expected in text.seen().items():
                found = blocks[layer, row, head].tolist()
                assert found == expected
                named = [block for block in found if block >= 0]
                assert len(set(named)) == len(named)
                assert text.newest in named or text.newest < 0


def _ints(values):
    return jnp.asarray(values, jnp.int32)


_advance = jax.jit(BlockTableShape.advance, static_argnums=(0, 7))
_rebuild = jax.jit(BlockTableShape.rebuild, static_argnums=(0, 5))


@pytest.mark.parametrize("name", SHAPES)
def test_long_random_commits(name):
    """Rows of unequal lengths, some frozen at times, each selecting when its own time has come."""
    bench = Bench(*SHAPES[name], seed=len(name))
    bench.rebuild([1, bench.shape.size - 3, 200])
    refreshed = []
    while max(text.committed for text in bench.texts) < CAPACITY - MOST:
        refreshed.append(bench.commit(bench.rng.choice([0, 1, 3, 7, 12], 3, p=[0.1, 0.2, 0.2, 0.3, 0.2])))
    assert (np.sum(refreshed, axis=0) > 1).all()
    assert any(sum(rows) == 1 for rows in refreshed)


def test_rebuild_at_any_length_forgets_what_was_there():
    bench = Bench(*SHAPES["used up"])
    for committed in ([0, 1, 3], [64, 65, 4], [300, 63, 500], [2, 66, 64], [507, 507, 507]):
        bench.rebuild(committed)
        bench.commit([1, 0, 5])


def test_first_selection_is_when_text_and_chain_no_longer_fit():
    plain, chain = (Bench(*SHAPES[name]) for name in ("used up", "no sinks, a chain, an interval"))
    assert plain.rebuild([63, 64, 65]) == [False, False, True]
    assert chain.rebuild([92, 93, 94]) == [False, False, True]  # 3 drafted rows beyond the text are read


def test_a_table_as_large_as_the_text_never_selects():
    bench = Bench(BlockTableShape(CAPACITY, 16, 1, None, 16), (None, None))
    bench.rebuild([0, 1, 400])
    assert not any(any(bench.commit([12, 1, 12])) for _ in range(9))
