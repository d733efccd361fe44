"""The n-gram table against a plain dict, on alphabets so small that ties and evictions are the rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswift_jax.speculate import ngram

CAPACITY = 48
VOCAB = 8

insert = jax.jit(ngram.insert, static_argnums=3)
lookup = jax.jit(ngram.lookup, static_argnums=2)


class DictTable:
    """The definition: first token -> {continuation: (count, last position)}, at most `slots` of them."""

    def __init__(self, slots):
        self.slots, self.rows = slots, {}

    def insert(self, text, eligible):
        for end in range(3, max(eligible, 3)):
            row = self.rows.setdefault(text[end - 3], {})
            continuation = tuple(text[end - 2 : end + 1])
            if continuation not in row and len(row) == self.slots:
                del row[min(row, key=row.__getitem__)]
            row[continuation] = (row.get(continuation, (0, 0))[0] + 1, end)
        return self

    def lookup(self, first, k):
        row = self.rows.get(first, {})
        best = sorted(row, key=row.__getitem__, reverse=True)[:k]
        return [(c, row[c][0]) for c in best], sum(count for count, _ in row.values())


def padded(texts):
    return jnp.asarray([list(text) + [0] * (CAPACITY - len(text)) for text in texts], jnp.int32)


def look(table, k):
    """Every first token of every batch row: [(continuation, count)] in the order given, and the total."""
    first = jnp.tile(jnp.arange(VOCAB, dtype=jnp.int32), (table.entries.shape[0], 1))
    continuations, counts, totals = (np.asarray(x) for x in lookup(table, first, k))
    assert continuations.shape == (*first.shape, k, 3)
    return [
        [
            (
                [(tuple(c.tolist()), int(n)) for c, n in zip(cs, ns, strict=True) if n > 0],
                int(total),
            )
            for cs, ns, total in zip(row_c, row_n, row_t, strict=True)
        ]
        for row_c, row_n, row_t in zip(continuations, counts, totals, strict=True)
    ]


def oracle(text, eligible, slots, k):
    table = DictTable(slots).insert(text, eligible)
    return [table.lookup(token, k) for token in range(VOCAB)]


texts = st.integers(2, 4).flatmap(
    lambda size: st.lists(st.integers(0, size - 1), min_size=0, max_size=CAPACITY).map(tuple)
)


@settings(max_examples=150, deadline=None)
@given(text=texts, eligible=st.integers(-5, CAPACITY), slots=st.sampled_from([1, 2, 5]))
def test_equals_a_dict(text, eligible, slots):
    eligible = min(eligible, len(text))
    table = insert(ngram.empty(1, VOCAB, slots), padded([text]), jnp.asarray([eligible], jnp.int32), None)
    assert look(table, slots)[0] == oracle(text, eligible, slots, slots)
    assert int(table.inserted[0]) == max(eligible, 0)


@settings(max_examples=100, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, CAPACITY), max_size=8), most=st.sampled_from([None, 3]))
def test_chunks_do_not_matter(text, cuts, most):
    """However the text arrives, and however few are taken a call, the table ends bit for bit the same."""
    tokens = padded([text])
    end = jnp.asarray([len(text)], jnp.int32)
    at_once = insert(ngram.empty(1, VOCAB, 3), tokens, end, None)
    table = ngram.empty(1, VOCAB, 3)
    for cut in [*sorted(min(cut, len(text)) for cut in cuts), *[len(text)] * (CAPACITY // 3)]:
        unread = jnp.where(jnp.arange(CAPACITY, dtype=jnp.int32)[None] < cut, tokens, VOCAB - 1)
        table = insert(table, unread, jnp.asarray([cut], jnp.int32), most)
    np.testing.assert_array_equal(table.entries, at_once.entries)
    np.testing.assert_array_equal(table.inserted, at_once.inserted)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, st.integers(-3, CAPACITY)), min_size=3, max_size=3), most=st.sampled_from([None, 3])
)
def test_a_batch_row_equals_the_row_alone(rows, most):
    tokens = padded([text for text, _ in rows])
    eligible = jnp.asarray([min(e, len(text)) for text, e in rows], jnp.int32)
    together = ngram.empty(3, VOCAB, 2)
    alone = [ngram.empty(1, VOCAB, 2) for _ in rows]
    for _ in range(2):
        together = insert(together, tokens, eligible, most)
        alone = [insert(t, tokens[i : i + 1], eligible[i : i + 1], most) for i, t in enumerate(alone)]
    for i, table in enumerate(alone):
        np.testing.assert_array_equal(together.entries[i], table.entries[0])
        assert int(together.inserted[i]) == int(table.inserted[0])


def test_survives_ties():
    """The sequence on which the reference program returns (4, 5, 6) twice and loses (1, 2, 3)."""
    text = (7, 1, 2, 3, 7, 4, 5, 6, 7, 4, 5, 6)
    table = insert(ngram.empty(1, VOCAB, 32), padded([text]), jnp.asarray([len(text)], jnp.int32), None)
    assert look(table, 20)[0][7] == ([((4, 5, 6), 2), ((1, 2, 3), 1)], 3)


def test_lookup_cuts_to_the_k_best_and_pads_beyond_the_slots():
    text = (1, 2, 3, 4, 1, 5, 6, 7, 1, 2, 3, 4, 1, 0, 0, 0)
    table = insert(ngram.empty(1, VOCAB, 4), padded([text]), jnp.asarray([len(text)], jnp.int32), None)
    assert look(table, 2)[0][1] == ([((2, 3, 4), 2), ((0, 0, 0), 1)], 4)  # (0, 0, 0) is later than (5, 6, 7)
    continuations, counts, totals = ngram.lookup(table, jnp.asarray([[1, 1]], jnp.int32), 6)
    np.testing.assert_array_equal(counts[0], [[2, 1, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(continuations[0, 1, :3], [[2, 3, 4], [0, 0, 0], [5, 6, 7]])
    np.testing.assert_array_equal(totals, [[4, 4]])


def test_a_bounded_call_takes_no_more_than_its_bound():
    text = (1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4)
    table = insert(ngram.empty(1, VOCAB, 2), padded([text]), jnp.asarray([len(text)], jnp.int32), 3)
    assert int(table.inserted[0]) == 6
    assert [total for _, total in look(table, 2)[0]] == [0, 1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("most", [None, 5])
def test_nothing_of_the_table_is_copied(most):
    """Cost is O(slots): inside a while loop, insertion and lookup leave no temporary of the table's size."""
    batch, vocab, slots = 2, 4096, 32

    @functools.partial(jax.jit, donate_argnums=0)
    def run(table, tokens, steps):
        def body(state):
            step, table, total = state
            table = ngram.insert(table, tokens, jnp.full((batch,), 3, jnp.int32) * step, most)
            _, _, totals = ngram.lookup(table, tokens[:, :3], 20)
            return step + 1, table, total + totals

        start = (jnp.int32(0), table, jnp.zeros((batch, 3), jnp.int32))
        return jax.lax.while_loop(lambda state: state[0] < steps, body, start)[1:]

    table = jax.eval_shape(lambda: ngram.empty(batch, vocab, slots))
    tokens = jax.ShapeDtypeStruct((batch, CAPACITY), jnp.int32)
    memory = run.lower(table, tokens, jax.ShapeDtypeStruct((), jnp.int32)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= batch * vocab * slots * 16
    assert memory.temp_size_in_bytes < 0.05 * batch * vocab * slots * 16


def test_ids_of_any_vocabulary_come_back():
    vocab = ngram.MAX_VOCAB
    text = [5, vocab - 1, 999_999, vocab - 2, 2**10, 2**10 - 1, 0, 2**10 + 1]
    table = insert(ngram.empty(1, vocab, 1), padded([text]), jnp.asarray([len(text)], jnp.int32), None)
    for place in range(len(text) - 3):
        continuation, counts, _ = ngram.lookup(table, jnp.asarray([[text[place]]], jnp.int32), 1)
        assert continuation[0, 0, 0].tolist() == text[place + 1 : place + 4]
        assert counts[0, 0, 0] == 1
    with pytest.raises(ValueError, match="do not fit the table, which takes 1,048,576"):
        ngram.empty(1, vocab + 1, 1)
