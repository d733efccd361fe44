"""The n-gram table against a plain dict, on alphabets so small that ties and evictions are the rule."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswift_jax.parallel.rules import bytes_on_each
from tokenswift_jax.speculate import ngram, ngram_fill, predicted_text

pytestmark = pytest.mark.slow

CAPACITY = 48
KEYS = 8  # of an alphabet; what is looked up

insert = jax.jit(ngram.insert, static_argnums=3)
lookup = jax.jit(ngram.lookup, static_argnums=2)
# Small enough that a text takes several blocks and a rank several tiles; the last as on accelerators.
FILLS = [
    functools.partial(jax.jit(ngram_fill.fill, static_argnames=("block", "tile", "steps")), **sizes)
    for sizes in ({}, {"block": 16, "tile": 2}, {"block": 20, "tile": 256, "steps": 32})
]
FILLS.append(jax.jit(ngram_fill.catch_up))


class DictTable:
    """The definition: first token -> {continuation: (count, last position)}, at most `slots` of them; first tokens that
    are equal modulo `sets` share 2 * slots entries, which never change their row."""

    def __init__(self, slots, sets):
        self.slots, self.sets, self.rows, self.used = slots, sets, {}, {}

    def insert(self, text, eligible, position=0):
        for end in range(3, max(eligible, 3)):
            first, *continuation = text[end - 3 : end + 1]
            row, continuation = self.rows.setdefault(first, {}), tuple(continuation)
            if continuation not in row:
                used = self.used.setdefault(first % self.sets, 0)
                if len(row) < self.slots and used < 2 * self.slots:
                    self.used[first % self.sets] += 1
                elif row:
                    del row[min(row, key=row.__getitem__)]
                else:
                    continue
            row[continuation] = (row.get(continuation, (0, 0))[0] + 1, position + end)
        return self

    def lookup(self, first, k):
        row = self.rows.get(first, {})
        best = sorted(row, key=row.__getitem__, reverse=True)[:k]
        return [(c, row[c][0]) for c in best], sum(count for count, _ in row.values())


def padded(texts):
    return jnp.asarray([list(text) + [0] * (CAPACITY - len(text)) for text in texts], jnp.int32)


def look(table, firsts, k):
    """First tokens [batch][keys] of every batch row: [(continuation, count)] in the order given, and the total."""
    continuations, counts, totals = (np.asarray(x) for x in lookup(table, jnp.asarray(firsts, jnp.int32), k))
    assert continuations.shape == (*np.shape(firsts), k, 3)
    assert not continuations[counts == 0].any()
    return [
        [
            ([(tuple(c.tolist()), int(n)) for c, n in zip(cs, ns, strict=True) if n > 0], int(total))
            for cs, ns, total in zip(row_c, row_n, row_t, strict=True)
        ]
        for row_c, row_n, row_t in zip(continuations, counts, totals, strict=True)
    ]


def oracle(text, eligible, table, firsts, k):
    known = DictTable(table.slots, table.entries.shape[1]).insert(text, eligible)
    return [known.lookup(token, k) for token in firsts]


def assert_same_table(one, other):
    np.testing.assert_array_equal(one.entries, other.entries)
    np.testing.assert_array_equal(one.inserted, other.inserted)


@st.composite
def texts(draw):
    """A text and its alphabet of KEYS ids; the text uses a few of them: neighbours, any, or all of one set."""
    used = draw(st.integers(2, KEYS))
    kind = draw(st.sampled_from(["neighbours", "any", "one set"]))
    if kind == "any":
        alphabet = draw(st.lists(st.integers(0, 199_999), min_size=KEYS, max_size=KEYS, unique=True))
    else:
        step = 1 if kind == "neighbours" else 120  # whole sets of every table of `tables`
        alphabet = [draw(st.integers(0, 50)) + step * index for index in range(KEYS)]
        alphabet = alphabet if len(set(alphabet)) == KEYS else [step * index for index in range(KEYS)]
    text = draw(st.lists(st.integers(0, used - 1), min_size=0, max_size=CAPACITY))
    return tuple(alphabet[index] for index in text), tuple(alphabet)


# Slots and the capacity that a table is made for: a smaller one than the text's has sets that fill up.
tables = st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([1, 8, CAPACITY]))


@settings(max_examples=300, deadline=None)
@given(drawn=texts(), eligible=st.integers(-5, CAPACITY), sizes=tables, fill=st.sampled_from(FILLS))
def test_equals_a_dict(drawn, eligible, sizes, fill):
    text, alphabet = drawn
    slots, capacity = sizes
    eligible = min(eligible, len(text))
    table = fill(ngram.empty(1, capacity, slots), padded([text]), jnp.asarray([eligible], jnp.int32))
    assert look(table, [alphabet], slots)[0] == oracle(text, eligible, table, alphabet, slots)
    assert int(table.inserted[0]) == max(eligible, 0)


@settings(max_examples=200, deadline=None)
@given(
    drawn=texts(),
    sizes=tables,
    cuts=st.lists(st.tuples(st.integers(0, CAPACITY), st.sampled_from([None, *FILLS])), max_size=8),
)
def test_chunks_do_not_matter(drawn, sizes, cuts):
    """However the text arrives, however few are taken a call, by whichever function: bit for bit the same table."""
    text, alphabet = drawn
    tokens, end = padded([text]), jnp.asarray([len(text)], jnp.int32)
    at_once = FILLS[0](ngram.empty(1, sizes[1], sizes[0]), tokens, end)
    table = ngram.empty(1, sizes[1], sizes[0])
    last = [(len(text), None)] * (CAPACITY // 3)
    for cut, fill in [*sorted(cuts, key=lambda cut: cut[0]), *last]:
        cut = min(cut, len(text))
        unread = jnp.where(jnp.arange(CAPACITY, dtype=jnp.int32)[None] < cut, tokens, alphabet[-1])
        until = jnp.asarray([cut], jnp.int32)
        table = insert(table, unread, until, 3) if fill is None else fill(table, unread, until)
    assert_same_table(table, at_once)
    assert look(table, [alphabet], sizes[0])[0] == oracle(text, len(text), table, alphabet, sizes[0])


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(texts(), st.integers(-3, CAPACITY)), min_size=3, max_size=3),
    sizes=tables,
    fill=st.sampled_from([None, *FILLS]),
)
def test_a_batch_row_equals_the_row_alone(rows, sizes, fill):
    tokens = padded([text for (text, _), _ in rows])
    eligible = jnp.asarray([min(e, len(text)) for (text, _), e in rows], jnp.int32)
    one = (lambda table, *a: insert(table, *a, 3)) if fill is None else fill
    together = ngram.empty(3, sizes[1], sizes[0])
    alone = [ngram.empty(1, sizes[1], sizes[0]) for _ in rows]
    for _ in range(2):
        together = one(together, tokens, eligible)
        alone = [one(t, tokens[i : i + 1], eligible[i : i + 1]) for i, t in enumerate(alone)]
    for i, table in enumerate(alone):
        np.testing.assert_array_equal(together.entries[i], table.entries[0])
        assert int(together.inserted[i]) == int(table.inserted[0])


@settings(max_examples=40, deadline=None)
@given(drawn=texts(), before=st.lists(texts(), min_size=2, max_size=2), sizes=tables, width=st.sampled_from([5, 64]))
def test_predictions_come_before_the_text_and_in_any_pieces(drawn, before, sizes, width):
    """One row has a prediction and the other another one; both have the same text after it."""
    text, alphabet = drawn
    predictions, tokens = [each for each, _ in before], padded([text, text])
    table = ngram.empty(2, sizes[1], sizes[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicted_text, "_WIDTH", width)
        for piece in predicted_text.pieces(predictions):
            table = predicted_text.enter(table, jnp.asarray(piece))
    table = FILLS[0](table, tokens, jnp.asarray([len(text)] * 2, jnp.int32))
    for row, prediction in enumerate(predictions):
        expected = DictTable(sizes[0], table.entries.shape[1])
        expected.insert(prediction, len(prediction), -len(prediction)).insert(text, len(text))
        found = look(table, [alphabet] * 2, sizes[0])[row]
        assert found == [expected.lookup(token, sizes[0]) for token in alphabet]


@pytest.mark.parametrize("vocab", [4, 2048, 200_000])
def test_long_texts(vocab):
    """Two rows of words as frequent as those of a language: many blocks, then some insertions one by one."""
    random, lengths = np.random.default_rng(vocab), (6000, 4321)
    shares = 1 / np.arange(1, vocab + 1)
    texts = random.choice(vocab, size=(2, 6144), p=shares / shares.sum())
    texts[0, 1000:2000], texts[1, 500:600] = 3, np.tile(texts[1, :20], 5)  # runs and repeated passages
    tokens = jnp.asarray(texts, jnp.int32)
    table = ngram.empty(2, 6144, 32)
    firsts = np.stack([np.unique(text)[np.linspace(0, len(np.unique(text)) - 1, 400).astype(int)] for text in texts])
    until = jnp.asarray([length - 120 for length in lengths], jnp.int32)
    table = FILLS[0](table, tokens, until)
    for _ in range(24):
        until += 5
        table = insert(table, tokens, until, 5)
    found = look(table, firsts, 32)
    for row, length in enumerate(lengths):
        assert found[row] == oracle(texts[row].tolist(), length, table, firsts[row].tolist(), 32)


def test_a_full_set_keeps_its_rows():
    """One set of two entries: 0 and 5 take them; 5 keeps its newest continuation, 7 gets none."""
    text = (0, 5, 1, 1, 5, 2, 2, 7, 5, 3, 3, 7)
    table = ngram.empty(1, 1, 1)
    assert table.entries.shape == (1, 2, 12)
    table = FILLS[0](replace(table, entries=table.entries[:, :1]), padded([text]), jnp.asarray([len(text)], jnp.int32))
    assert look(table, [[0, 5, 7, 1]], 1)[0] == [([((5, 1, 1), 1)], 1), ([((3, 3, 7), 1)], 1), ([], 0), ([], 0)]


def test_survives_ties():
    """The sequence on which the reference program returns (4, 5, 6) twice and loses (1, 2, 3)."""
    text = (7, 1, 2, 3, 7, 4, 5, 6, 7, 4, 5, 6)
    table = FILLS[0](ngram.empty(1, CAPACITY, 32), padded([text]), jnp.asarray([len(text)], jnp.int32))
    assert look(table, [[7]], 20)[0][0] == ([((4, 5, 6), 2), ((1, 2, 3), 1)], 3)


def test_lookup_cuts_to_the_k_best_and_pads_beyond_the_slots():
    text = (1, 2, 3, 4, 1, 5, 6, 7, 1, 2, 3, 4, 1, 0, 0, 0)
    table = FILLS[0](ngram.empty(1, CAPACITY, 4), padded([text]), jnp.asarray([len(text)], jnp.int32))
    assert look(table, [[1]], 2)[0][0] == ([((2, 3, 4), 2), ((0, 0, 0), 1)], 4)  # (0, 0, 0) is later than (5, 6, 7)
    continuations, counts, totals = ngram.lookup(table, jnp.asarray([[1, 1]], jnp.int32), 9)
    np.testing.assert_array_equal(counts[0], [[2, 1, 1, 0, 0, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(continuations[0, 1, :3], [[2, 3, 4], [0, 0, 0], [5, 6, 7]])
    np.testing.assert_array_equal(totals, [[4, 4]])


def test_a_bounded_call_takes_no_more_than_its_bound():
    text = (1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4)
    table = insert(ngram.empty(1, CAPACITY, 2), padded([text]), jnp.asarray([len(text)], jnp.int32), 3)
    assert int(table.inserted[0]) == 6
    assert [total for _, total in look(table, [range(8)], 2)[0]] == [0, 1, 1, 1, 0, 0, 0, 0]


def test_ids_of_any_vocabulary_come_back():
    text = [5, 2**31 - 1, 999_999, 2**31 - 2, 2**10, 2**21, 0, 2**10 + 1]
    table = FILLS[0](ngram.empty(1, CAPACITY, 1), padded([text]), jnp.asarray([len(text)], jnp.int32))
    for place in range(len(text) - 3):
        assert look(table, [[text[place]]], 1)[0][0] == ([(tuple(text[place + 1 : place + 4]), 1)], 1)


def table_bytes(batch, capacity, slots):
    return bytes_on_each({}, jax.eval_shape(lambda: ngram.empty(batch, capacity, slots)))


@pytest.mark.parametrize("capacity", [256, 512, 10_240, 131_072, 1_048_576])
def test_bytes_are_bounded_by_the_text(capacity):
    one, three = (table_bytes(batch, capacity, 32) for batch in (1, 3))
    assert 60 * capacity <= one <= 8_000_000 * capacity / 131_072
    assert three == 3 * one
    assert jax.eval_shape(lambda: ngram.empty(3, capacity, 32)).slots == 32


def test_a_run_is_one_insertion():
    """A text that repeats one token takes as many steps as it has blocks."""
    tokens = jnp.full((1, 4096), 7, jnp.int32)
    queue, number = ngram_fill._queue(tokens, jnp.asarray([3], jnp.int32), jnp.asarray([4000], jnp.int32), 4096, 9)
    assert (int(number[0]), queue[0, 0].tolist()) == (1, [0, 3999, 3997])


def looped(batch, capacity, slots):
    """A compiled loop of insertions and lookups, as decoding runs them."""

    @functools.partial(jax.jit, donate_argnums=0)
    def run(table, tokens, steps):
        def body(state):
            step, table, total = state
            table = ngram.insert(table, tokens, jnp.full((batch,), 3, jnp.int32) * step, 5)
            _, _, totals = ngram.lookup(table, tokens[:, :3], 20)
            return step + 1, table, total + totals

        start = (jnp.int32(0), table, jnp.zeros((batch, 3), jnp.int32))
        return jax.lax.while_loop(lambda state: state[0] < steps, body, start)[1:]

    table = jax.eval_shape(lambda: ngram.empty(batch, capacity, slots))
    tokens = jax.ShapeDtypeStruct((batch, CAPACITY), jnp.int32)
    return run.lower(table, tokens, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def test_nothing_of_the_table_is_copied():
    """Cost is O(slots): inside a while loop, insertion and lookup leave no temporary of the table's size."""
    memory = looped(2, 65_536, 32).memory_analysis()
    size = table_bytes(2, 65_536, 32)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.05 * size


def test_filling_takes_no_memory_of_the_texts_size():
    table = jax.eval_shape(lambda: ngram.empty(2, 131_072, 32))
    shapes = table, jax.ShapeDtypeStruct((2, 131_072), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
    memory = jax.jit(ngram_fill.fill, donate_argnums=0).lower(*shapes).compile().memory_analysis()
    size = table_bytes(2, 131_072, 32)
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < 0.05 * size


def test_the_program_does_not_grow_with_the_batch():
    one, many = (looped(batch, 1024, 32).as_text().count(" = ") for batch in (1, 64))
    assert many <= 1.1 * one
