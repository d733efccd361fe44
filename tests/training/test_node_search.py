"""The search for node sets against every set there is, and expected tokens against a plain walk."""

import itertools

import numpy as np
import pytest

from tokenswift_jax.training.node_search import accepted_by, best_nodes, expected_tokens


def _closed_sets(depth, width, size):
    """Every set of `size` paths that holds the parent of each of its paths."""
    paths = [path for d in range(1, depth + 1) for path in itertools.product(range(width), repeat=d)]
    for chosen in itertools.combinations(paths, size):
        chosen = set(chosen)
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            yield chosen


def _correlated_ranks(rng, roots, depth, width):
    """Ranks that lean to 0, and more so after a 0: neither independent nor all alike."""
    ranks = np.zeros((roots, depth), np.int64)
    for d in range(depth):
        lean = np.where((ranks[:, d - 1] == 0) if d else True, 0.45, 0.75)
        ranks[:, d] = np.minimum(rng.geometric(1 - lean) - 1, width)
    return ranks


@pytest.mark.parametrize("seed", range(2))
def test_every_budget_gets_the_set_that_accepts_most(seed):
    rng, depth, width = np.random.default_rng(seed), 2, 3
    # 20,000 roots: the prior's 16 are nothing, so that chances are the frequencies of any set.
    ranks = _correlated_ranks(rng, 20000, depth, width)
    nodes = best_nodes(ranks, width)
    kinds, counts = np.unique(ranks, axis=0, return_counts=True)  # some 16, so that every set can be tried on all roots

    def accepted(chosen):
        return np.average(accepted_by(kinds, chosen), weights=counts)

    for size in range(1, 5):
        best = max(accepted(chosen) for chosen in _closed_sets(depth, width, size))
        chosen = [path for path, _ in nodes[:size]]
        assert accepted(chosen) >= best - 2e-3  # sets as good as the best but for the prior's pull
        assert sum(chance for _, chance in nodes[:size]) == pytest.approx(accepted(chosen), abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_of_the_estimated_chances_the_sum_is_the_largest(seed):
    # Few roots, three depths: the estimate is the prior's as much as the data's, and still the greedy sum is the best.
    ranks, depth, width = _correlated_ranks(np.random.default_rng(seed), 30, 3, 2), 3, 2
    everything = dict(best_nodes(ranks, width, most=14))
    for size in range(1, 7):
        best = max(sum(everything.get(path, 0) for path in chosen) for chosen in _closed_sets(depth, width, size))
        assert sum(chance for _, chance in best_nodes(ranks, width, most=size)) == pytest.approx(best, abs=1e-12)


def test_sets_are_nested_closed_and_bounded():
    nodes = [path for path, _ in best_nodes(_correlated_ranks(np.random.default_rng(0), 400, 4, 8), 8)]
    assert len(nodes) == len(set(nodes)) == 64
    for index, path in enumerate(nodes):
        assert len(path) == 1 or path[:-1] in nodes[:index]
    assert nodes[:7] == [
        path for path, _ in best_nodes(_correlated_ranks(np.random.default_rng(0), 400, 4, 8), 8, most=7)
    ]


def test_chances_are_conditional_where_data_allow_and_independent_where_not():
    # After rank 0 always rank 1; after rank 1 always rank 0.
    ranks = np.asarray([[0, 1]] * 600 + [[1, 0]] * 400)
    chances = dict(best_nodes(ranks, 2))
    assert chances[(0,)] == pytest.approx(0.6)
    assert chances[(0, 1)] == pytest.approx(0.6 * (600 + 16 * 0.6) / 616)
    assert chances[(0, 0)] == pytest.approx(0.6 * (0 + 16 * 0.4) / 616)
    # The one accepted parent says nothing of depth 2 (its child was not found); a root elsewhere does: 1 in 2.
    chances = dict(best_nodes(np.asarray([[0, 2], [2, 0]]), 2))
    after_any = (0 + 16 * 0.5) / (1 + 16)
    assert chances == {(0,): pytest.approx(0.5), (0, 0): pytest.approx(0.5 * 16 * after_any / (1 + 16))}
    # No node of depth 1 was ever right, so none below it has a chance.
    assert best_nodes(np.asarray([[2, 0], [2, 1]]), 2) == []


def test_expected_tokens_walk_the_text():
    nodes = [(0,), (0, 0), (1,)]
    ranks = np.asarray([[0, 0], [2, 0], [1, 0], [0, 2], [0, 0], [0, 2], [2, 2]])
    np.testing.assert_array_equal(accepted_by(ranks, nodes), [2, 0, 1, 1, 2, 1, 0])
    # Roots 0 (accepts 2), 3 (1), 5 (1): 7 tokens in 3 iterations, the last cut to nothing past the end.
    assert expected_tokens([ranks], nodes) == pytest.approx(7 / 3)
    assert expected_tokens([ranks, ranks[:2]], nodes) == pytest.approx(9 / 4)
    assert expected_tokens([ranks], []) == 1.0
    assert np.isnan(expected_tokens([ranks[:0]], nodes))


def test_no_roots_are_refused():
    with pytest.raises(ValueError, match="name no roots"):
        best_nodes(np.zeros((0, 3), np.int64), 4)
