"""Trust in the n-grams against the sums it is defined by, and what it does to a tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokenswift_jax.speculate import ngram, ngram_calibration, ngram_fill
from tokenswift_jax.speculate.tree import Tree, build
from tokenswift_jax.speculate.tree_expand import shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step.accept import Acceptance

ROOTED, BELOW = TreeSpec((2,), 2), TreeSpec((2,), 2, keyed_by_root=False)
# After 0 came 1 2 3 twice, 1 4 4 once, 5 5 5 once; after 1 came 2 3 0 twice, 4 4 0 once.
TEXT = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 4, 4, 0, 5, 5, 5, 7]
UNSEEN = 6
ROUNDING = 1e-6  # float32 sums of at most sixty terms of at most 1, divided


@functools.cache
def table():
    tokens = jnp.asarray([TEXT] * 2, jnp.int32)
    return ngram_fill.fill(ngram.empty(2, len(TEXT), 8), tokens, jnp.asarray([len(TEXT)] * 2, jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def _observe(shape, record, known, tree, acceptance, running):
    key = ngram_calibration.judged_key(shape, tree, acceptance)
    _, best = ngram.updated(known, jnp.zeros((2, 4), jnp.int32), jnp.zeros(2, jnp.int32), 1, key, shape.ngram_k)
    return ngram_calibration.observe(record, shape, best, tree, acceptance, running)


def observe(shape, record, root, emitted, accepted=(0, 0), running=(True, True), nodes=()):
    """The record after an iteration of two texts; `emitted` [2][2]. Each tree has the nodes (token, parent, depth,
    drafted by an n-gram only) below its root."""
    emitted, accepted = jnp.asarray(emitted, jnp.int32), jnp.asarray(accepted, jnp.int32)
    # The first node is the one that was accepted, if it accepted any.
    acceptance = Acceptance(
        path=jnp.minimum(jnp.arange(2, dtype=jnp.int32)[None], accepted[:, None]), accepted=accepted, emitted=emitted
    )
    rows = [np.array([[token, 0, 0, False], *nodes, (0, 0, 0, True)]) for token in root]
    tokens, parents, depths, by_ngram = np.moveaxis(np.stack(rows), -1, 0).astype(np.int32)
    valid = jnp.asarray([[True] * (1 + len(nodes)) + [False]] * 2)
    nothing = jnp.zeros(())
    tree = Tree(*map(jnp.asarray, (tokens, parents, depths)), valid, jnp.asarray(by_ngram > 0), nothing, nothing)
    return _observe(shape, record, table(), tree, acceptance, jnp.asarray(running))


def expected(outcomes, predicted):
    hits = predicted_sum = 0.0
    for hit in outcomes:
        hits, predicted_sum = ngram_calibration.DECAY * hits + hit, ngram_calibration.DECAY * predicted_sum + predicted
    return min(1.0, (hits + ngram_calibration.PRIOR_WEIGHT) / (predicted_sum + ngram_calibration.PRIOR_WEIGHT))


def test_it_starts_at_one_falls_with_failures_and_comes_back_with_hits():
    record = ngram_calibration.unobserved(2)
    np.testing.assert_array_equal(ngram_calibration.acceptance_scale(record), [1, 1])
    # The two kept chains of 0 (1 2 3 and the later 5 5 5) have counts 2 and 1 of 4: token 1 is predicted with
    # probability 2 / (4 + 1).
    outcomes = [0] * 30 + [1] * 30
    course = []
    for step, hit in enumerate(outcomes, 1):
        record = observe(ROOTED, record, [0, 0], [[1 if hit else 2, -1], [1, -1]])
        course.append(ngram_calibration.acceptance_scale(record))
        np.testing.assert_allclose(course[-1], [expected(outcomes[:step], 0.4), 1], rtol=0, atol=ROUNDING)
    course = np.array(course)[:, 0]
    assert (np.diff(course[:30]) < 0).all()
    assert course[29] < 0.3
    assert course[59] == 1


def test_the_prediction_is_that_of_the_node():
    """Chains that share their first token are predicted together, as in the tree."""
    shape = TreeSpec((2,), 3)
    record = observe(shape, ngram_calibration.unobserved(2), [0, 1], [[1, -1], [4, -1]])
    # Of the 4 after 0 three begin with 1; of the 3 after 1 two begin with 2.
    np.testing.assert_allclose(record, [[1, 3 / 5], [0, 2 / 4]], rtol=0, atol=ROUNDING)


def test_rows_that_do_not_run_and_keys_without_continuation_stay():
    record = jnp.asarray([[0.5, 3], [2, 1]], jnp.float32)
    after = observe(ROOTED, record, [0, UNSEEN], [[1, -1], [1, -1]], running=(False, True))
    np.testing.assert_array_equal(after, record)


def test_a_key_below_the_root_counts_only_where_it_was_accepted():
    record = jnp.asarray([[0.5, 3], [0.5, 3]], jnp.float32)
    after = observe(BELOW, record, [UNSEEN, 0], [[0, 1], [0, -1]], accepted=(1, 0), nodes=[(0, 0, 1, False)])
    observed = [ngram_calibration.DECAY * 0.5 + 1, ngram_calibration.DECAY * 3 + 0.4]
    np.testing.assert_allclose(after, [observed, [0.5, 3]], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("node", "counts"),
    [((1, 0, 1, False), False), ((1, 0, 1, True), True), ((2, 0, 1, False), True), ((1, 0, 2, False), True)],
    ids=["a head's", "the chain's", "another token", "another depth"],
)
def test_where_a_head_drafts_the_same_the_chain_is_not_judged(node, counts):
    after = observe(ROOTED, ngram_calibration.unobserved(2), [0, 0], [[1, -1], [2, -1]], nodes=[node])
    judged = [[1, 0.4], [0, 0.4]]
    np.testing.assert_allclose(after, judged if counts else np.zeros((2, 2)), rtol=0, atol=ROUNDING)


def test_below_the_root_a_head_drafts_under_the_accepted_candidate():
    record = ngram_calibration.unobserved(2)
    for parent, counts in ((1, False), (2, True)):
        nodes = [(0, 0, 1, False), (5, 0, 1, False), (1, parent, 2, False)]
        after = observe(BELOW, record, [UNSEEN, UNSEEN], [[0, 1], [0, -1]], accepted=(1, 0), nodes=nodes)
        np.testing.assert_allclose(after, [[1, 0.4] if counts else [0, 0], [0, 0]], rtol=0, atol=ROUNDING)


def test_where_the_table_lies_the_heads_fill_the_budget():
    shape = TreeSpec((3,), 2, node_budget=3)
    candidates = [(jnp.asarray([[2, 3, 4]] * 2, jnp.int32), jnp.log(jnp.asarray([[0.3, 0.2, 0.15]] * 2, jnp.float32)))]
    root = jnp.asarray([0, 0], jnp.int32)
    record = ngram_calibration.unobserved(2)
    for _ in range(40):  # row 0 lies, row 1 does not
        record = observe(ROOTED, record, root, [[7, -1], [1, -1]])
    chains = ngram.lookup(table(), root[:, None], 2)
    tree = jax.jit(build, static_argnums=0)(
        shape, root, shared_levels(shape, candidates), chains, ngram_calibration.acceptance_scale(record)
    )
    np.testing.assert_array_equal(tree.tokens, [[0, 2, 3, 4], [0, 1, 2, 3]])
    np.testing.assert_array_equal(tree.drafted_by_ngram_only[0], [False] * 4)
    np.testing.assert_array_equal(tree.tokens[1, 1:][tree.drafted_by_ngram_only[1, 1:]], [1, 2, 3])


@pytest.mark.parametrize("mode", ["tokenswift", "ngram"])
def test_only_where_chains_compete_with_heads(mode):
    shape = TreeSpec((2,) if mode == "tokenswift" else (), 2)
    assert shape.calibrated == (mode == "tokenswift")
    assert not TreeSpec((2,)).calibrated
