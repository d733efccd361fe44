"""Packing and batches: nothing crosses documents, nothing is lost, any batch can be resumed at."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tokenswift_jax.errors import UserError
from tokenswift_jax.training.shards import Corpus
from tokenswift_jax.training.windows import batches, pack

LENGTH, LEAST = 16, 5


def corpus_of(sizes, shard_documents=4):
    """Every token of the corpus has an id of its own."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    firsts = offsets[:-1:shard_documents]
    everything = np.arange(offsets[-1], dtype=np.uint32)
    shards = tuple(np.split(everything, firsts[1:]))
    return Corpus("digest", offsets, shards, firsts, int(offsets[-1]) - 1, 0, ())


@pytest.fixture(scope="module")
def corpus():
    sizes = np.random.default_rng(0).integers(1, 60, 200)
    return corpus_of([*sizes, 16, 32, 160])


def read(packing, **options):
    options = {"batch_size": 4, "seed": 3, "epochs": 1} | options
    return batches(packing, **options)


def flat(batch):
    return [array.tolist() for array in batch]


def pieces(row):
    for segment in range(1, int(row.segments.max()) + 1):
        yield row.tokens[row.segments == segment], row.positions[row.segments == segment]


def test_pieces_stay_within_documents_and_every_kept_token_comes_once(corpus):
    packing = pack(corpus, length=LENGTH, min_tokens=LEAST)
    seen = []
    for index in range(packing.rows):
        row = packing.row(index)
        filled = int((row.segments > 0).sum())
        assert (row.segments[:filled] > 0).all()
        assert not row.tokens[filled:].any()
        assert not row.positions[filled:].any()
        assert (np.diff(row.segments[:filled]) >= 0).all()
        for tokens, positions in pieces(row):
            assert LEAST <= len(tokens) <= LENGTH
            np.testing.assert_array_equal(tokens, np.arange(tokens[0], tokens[0] + len(tokens)))
            document = np.searchsorted(corpus.offsets, tokens, side="right")
            assert (document == document[0]).all()
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            seen.extend(tokens.tolist())
    ends = np.diff(corpus.offsets) % LENGTH
    dropped = int(ends[ends < LEAST].sum())
    assert packing.dropped_tokens == dropped > 0
    assert packing.tokens == len(seen) == len(set(seen)) == corpus.tokens - dropped
    for start, size in zip(corpus.offsets, ends, strict=False):  # the starts of documents are always kept
        assert size < LEAST or int(start) in set(seen)


def test_packing_by_hand():
    # 20 is cut to 16 and 4, the 4 dropped; ends by size: 11, 8, 7, 5, 5.
    packing = pack(corpus_of([5, 7, 20, 11, 8, 5]), length=16, min_tokens=5)
    assert (packing.rows, packing.spanning, packing.dropped_tokens) == (4, 1, 4)
    rows = [[(int(tokens[0]), len(tokens)) for tokens, _ in pieces(packing.row(index))] for index in range(4)]
    # 11 opens a row, 8 another; 7 goes beside 8, the first 5 beside 11; for the last nothing has room.
    assert rows == [[(12, 16)], [(0, 5), (32, 11)], [(5, 7), (43, 8)], [(51, 5)]]


def test_packing_wastes_little():
    sizes = np.random.default_rng(1).integers(5, 60, 3000)
    packing = pack(corpus_of(sizes), length=64, min_tokens=5)
    assert packing.tokens == sizes.sum()
    # Sizes spread evenly below the row's length: best-fit decreasing leaves next to nothing.
    assert packing.rows <= 1.01 * -(-packing.tokens // 64)


def test_chosen_documents_only(corpus):
    packing = pack(corpus, length=LENGTH, min_tokens=LEAST, documents=range(10, 20))
    seen = np.concatenate([tokens for index in range(packing.rows) for tokens, _ in pieces(packing.row(index))])
    assert corpus.offsets[10] <= seen.min()
    assert seen.max() < corpus.offsets[20]


def test_an_epoch_is_every_row_in_an_order_of_its_own(corpus):
    packing = pack(corpus, length=LENGTH, min_tokens=LEAST)
    steps = packing.steps_per_epoch(4)
    firsts = [int(row[0]) for batch in read(packing, epochs=2) for row in batch.tokens]
    assert len(firsts) == 2 * 4 * steps
    every = {int(packing.row(index).tokens[0]) for index in range(packing.rows)}
    first, second = firsts[: 4 * steps], firsts[4 * steps :]
    for epoch in (first, second):
        assert len(set(epoch)) == 4 * steps
        assert set(epoch) <= every
    assert first != second
    assert first != sorted(first)
    other = [int(row[0]) for batch in read(packing, seed=4) for row in batch.tokens]
    assert other not in (first, second)
    again = [int(row[0]) for batch in read(packing) for row in batch.tokens]
    assert again == first


def test_batches_are_the_rows_stacked(corpus):
    packing = pack(corpus, length=LENGTH, min_tokens=LEAST)
    rows = {int(row.tokens[0]): row for row in map(packing.row, range(packing.rows))}
    batch = next(read(packing))
    for array in batch:
        assert array.shape == (4, LENGTH)
        assert array.dtype == np.int32
    for index, first in enumerate(batch.tokens[:, 0]):
        assert flat(row[index] for row in batch) == flat(rows[int(first)])


def test_processes_share_each_batch(corpus):
    packing = pack(corpus, length=LENGTH, min_tokens=LEAST)
    options = {"epochs": 2, "skip_share": 0.5, "max_positions": 1000}
    alone = list(read(packing, **options))
    shared = [list(read(packing, **options, process_index=index, process_count=2)) for index in range(2)]
    assert len(alone) == len(shared[0]) == len(shared[1]) == 2 * packing.steps_per_epoch(4)
    for whole, *parts in zip(alone, *shared, strict=True):
        for array, left, right in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(array[0::2], left)
            np.testing.assert_array_equal(array[1::2], right)


@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_restored_iterator_continues_bit_for_bit(corpus, step):
    packing = pack(corpus, length=LENGTH, min_tokens=LEAST)
    options = {"epochs": None, "skip_share": 0.5, "max_positions": 1000}
    whole = read(packing, **options)
    for _ in range(step):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    count = packing.steps_per_epoch(4) + 5  # beyond an epoch's end
    expected = [flat(next(whole)) for _ in range(count)]
    fresh = read(pack(corpus, length=LENGTH, min_tokens=LEAST), **options)
    next(fresh)  # its read-ahead has begun elsewhere
    fresh.set_state(state)
    assert [flat(next(fresh)) for _ in range(count)] == expected


OTHER_PROCESS = """
import json
import numpy as np
from training.test_windows import corpus_of, flat, read
from tokenswift_jax.training.windows import pack
packing = pack(corpus_of(list(range(5, 60))), length=16, min_tokens=5)
iterator = read(packing, epochs=None, skip_share=0.5, max_positions=1000)
iterator.set_state({"next_index": 30})
print(json.dumps([flat(next(iterator)) for _ in range(3)]))
iterator.close()
"""


def test_another_process_makes_the_same_batches(pytestconfig):
    command = [sys.executable, "-c", OTHER_PROCESS]
    printed = subprocess.run(command, cwd=pytestconfig.rootpath / "tests", check=True, capture_output=True).stdout
    packing = pack(corpus_of(list(range(5, 60))), length=16, min_tokens=5)
    here = read(packing, epochs=None, skip_share=0.5, max_positions=1000)
    made = [flat(next(here)) for _ in range(33)]
    assert json.loads(printed) == made[30:]


def test_positions_jump_once_in_the_share_asked_for():
    packing = pack(corpus_of([160] * 400 + [8] * 800), length=16, min_tokens=5)
    assert (packing.rows, packing.spanning) == (4400, 4000)
    jumps, rows = [], 0
    for batch in read(packing, batch_size=100, skip_share=0.25, max_positions=4096):
        rows += len(batch.tokens)
        assert batch.positions.max() < 4096
        for tokens, positions, segments in zip(*batch, strict=True):
            steps = np.diff(positions)
            if segments.max() > 1 or (steps == 1).all():
                np.testing.assert_array_equal(positions, np.arange(16) if segments.max() == 1 else [*range(8)] * 2)
                continue
            assert positions[0] == 0
            assert (steps == 1).sum() == 14
            np.testing.assert_array_equal(np.diff(tokens), 1)
            jumps.append((int(steps.argmax()) + 1, int(steps.max()) - 1))
    share = len(jumps) / rows
    assert abs(share - 0.25) < 0.03  # 4,400 rows: four standard deviations are 0.026
    places, sizes = np.array(jumps).T
    assert set(places) == set(range(1, 16))
    assert sizes.min() >= 1
    assert sizes.max() <= 4096 - 16
    # Log-uniform: as many below the square root of the range as above it, within four standard deviations (0.06).
    assert abs((sizes < 64).mean() - 0.5) < 0.07


def test_jumps_differ_between_epochs():
    packing = pack(corpus_of([160] * 8), length=16, min_tokens=5)
    iterator = read(packing, epochs=2, skip_share=1.0, max_positions=4096)
    rows = [(int(t[0]), tuple(p)) for batch in iterator for t, p in zip(batch.tokens, batch.positions, strict=True)]
    first, second = dict(rows[:80]), dict(rows[80:])
    assert first.keys() == second.keys()
    assert sum(first[row] == second[row] for row in first) <= 2


def test_bad_input(corpus):
    with pytest.raises(UserError, match="max_length 4 is too short: these heads need at least 5"):
        pack(corpus, length=4, min_tokens=5)
    with pytest.raises(UserError, match=r"every document is shorter than 5 tokens.*the longest has 4"):
        pack(corpus_of([1, 4, 2]), length=16, min_tokens=5)
    small = pack(corpus_of([20, 12]), length=16, min_tokens=5)
    with pytest.raises(UserError, match="fill 2 rows of 16 tokens, not one batch of 4"):
        read(small)
    with pytest.raises(UserError, match="batch_size 4 cannot be shared equally by 3 processes"):
        read(small, process_count=3)
    with pytest.raises(UserError, match="the model has 16, rows of 16 tokens fill them all"):
        read(small, batch_size=2, skip_share=0.5, max_positions=16)
    with pytest.raises(UserError, match="no document has 16 tokens"):
        read(pack(corpus_of([12]), length=16, min_tokens=5), batch_size=1, skip_share=0.5, max_positions=99)
    with pytest.raises(UserError, match="jump is 2"):
        read(small, batch_size=2, skip_share=2, max_positions=99)
