"""The tree against a trie of plain dicts, on alphabets so small that heads and chains collide."""

import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.node_sets import product_within, within_budget
from tokenswift_jax.models.node_sets import widths as widths_of
from tokenswift_jax.speculate.tree import build
from tokenswift_jax.speculate.tree_expand import next_level, select_frontier, shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
VOCAB = 5
SHAPES = [
    TreeSpec((1, 3, 3, 3), 4, keyed_by_root=False),
    TreeSpec((2, 2, 3), 3, keyed_by_root=False),
    TreeSpec((2,), 3, keyed_by_root=False),
    TreeSpec((3, 3, 3), 4),
    TreeSpec((3, 2), 5),
    TreeSpec((2, 2), 4, ngram_depth=1),
    TreeSpec((), 6),
    TreeSpec((3, 3, 3)),
    TreeSpec((1, 1, 1, 1)),
]
NODE_SET = ((0,), (1,), (0, 0), (2,), (0, 0, 1), (1, 0), (0, 2))


@functools.partial(jax.jit, static_argnums=0)
def compiled_build(shape, root, candidates, ngrams, ngram_scale=None):
    return build(shape, root, shared_levels(shape, candidates), ngrams, ngram_scale)


def with_budget(shape, budget):
    return TreeSpec(shape.widths, shape.ngram_k, shape.ngram_depth, budget, shape.keyed_by_root)


@st.composite
def inputs(draw, shape):
    """Candidates per depth [(token, probability or None)], chains per key [(tokens, count)] and totals."""
    candidates = []
    for width in shape.widths:
        tokens = draw(st.permutations(range(VOCAB)))[:width]
        chances = draw(
            st.lists(st.sampled_from([None, 0.0, 1e-30, 0.125, 0.3, 0.5, 1.0]), min_size=width, max_size=width)
        )
        candidates.append(list(zip(tokens, chances, strict=True)))
    token = st.integers(0, VOCAB - 1)
    chain = st.tuples(st.tuples(token, token, token), st.integers(0, 3))
    chains = [draw(st.lists(chain, min_size=shape.ngram_k, max_size=shape.ngram_k)) for _ in range(shape.keys)]
    totals = [sum(count for _, count in row) + draw(st.integers(0, 4)) for row in chains]
    return candidates, chains, totals


def as_arrays(shape, batch):
    """The drawn inputs of several rows as the arguments of build."""
    root = jnp.arange(len(batch), dtype=jnp.int32)
    candidates = []
    for depth in range(len(shape.widths)):
        tokens = [[token for token, _ in row[0][depth]] for row in batch]
        chances = [[math.nan if p is None else p for _, p in row[0][depth]] for row in batch]
        with np.errstate(divide="ignore"):
            log_probs = np.log(np.array(chances, np.float64))
        # Probability 0 that is not filtered: a log-probability so low that exp underflows.
        log_probs = np.where(np.isnan(log_probs), -np.inf, np.maximum(log_probs, -1e4)).astype(np.float32)
        candidates.append((jnp.asarray(tokens, jnp.int32), jnp.asarray(log_probs)))
    if not shape.ngram_k:
        return root, candidates, None
    ngrams = (
        jnp.asarray([[[tokens for tokens, _ in key] for key in row[1]] for row in batch], jnp.int32),
        jnp.asarray([[[count for _, count in key] for key in row[1]] for row in batch], jnp.int32),
        jnp.asarray([row[2] for row in batch], jnp.int32),
    )
    return root, candidates, ngrams


def trie(shape, candidates, chains, totals):
    """{path of tokens: [score, by chain only]} of every node, float64, merged by path."""
    nodes = {}

    def descend(path, probability):
        if len(path) == len(shape.widths):
            return
        for token, chance in candidates[len(path)]:
            if chance is not None:
                nodes[(*path, token)] = [probability * chance, False]
                descend((*path, token), probability * chance)

    descend((), 1.0)
    for key in range(shape.keys):
        start, probability = (), 1.0
        if not shape.keyed_by_root:
            token, probability = candidates[0][key]
            start = (token,)
            if probability is None:
                continue
        through = {}
        for tokens, count in chains[key]:
            for length in range(1, shape.ngram_depth + 1):
                if count > 0:
                    path = (*start, *tokens[:length])
                    through[path] = through.get(path, 0) + count
        for path, count in through.items():
            score = probability * count / (totals[key] + 1)
            if path in nodes:
                nodes[path][0] = max(nodes[path][0], score)
            else:
                nodes[path] = [score, True]
    return nodes


def paths_of(tree, row):
    """{path of tokens: row index} of the valid nodes, by following parents; asserts uniqueness and order."""
    tokens, parents, valid = (np.asarray(x[row]) for x in (tree.tokens, tree.parents, tree.valid))
    paths = {0: ()}
    for node in range(1, len(tokens)):
        if valid[node]:
            assert parents[node] in paths, "a parent stands before its child and is valid"
            paths[node] = (*paths[parents[node]], int(tokens[node]))
    assert len(set(paths.values())) == len(paths), "nodes are unique"
    return {path: node for node, path in paths.items()}


def check_rows(shape, tree, row, nodes, expected_paths):
    """The arrays of one batch row say what the trie says, for exactly the expected paths."""
    paths = paths_of(tree, row)
    assert paths.keys() == {(), *expected_paths}
    assert int(tree.tokens[row, 0]) == row
    assert int(tree.parents[row, 0]) == 0
    rows = tree.tokens.shape[1]
    assert rows == shape.rows
    mask, depths, by_chain = (np.asarray(x[row]) for x in (tree.mask, tree.depths, tree.drafted_by_ngram_only))
    expected_mask = np.eye(rows, dtype=bool)
    for path, node in paths.items():
        assert depths[node] == len(path)
        assert by_chain[node] == (nodes[path][1] if path else False)
        for length in range(len(path)):
            expected_mask[node, paths[path[:length]]] = True
    np.testing.assert_array_equal(mask, expected_mask)
    invalid = [node for node in range(rows) if node not in paths.values()]
    assert not np.asarray(tree.valid[row])[invalid].any()
    for field in (tree.tokens, tree.parents, tree.depths, tree.drafted_by_ngram_only):
        assert not np.asarray(field[row])[invalid].any()
    assert int(tree.deepest[row]) == max(map(len, paths))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_tree_is_the_merged_trie(shape):
    @settings(max_examples=40, deadline=None)
    @given(st.tuples(inputs(shape), inputs(shape)))
    def check(batch):
        tree = compiled_build(shape, *as_arrays(shape, batch))
        for row, drawn in enumerate(batch):
            nodes = trie(shape, *drawn)
            check_rows(shape, tree, row, nodes, nodes)

    check()


@pytest.mark.parametrize("budget", [1, 3, 7, 15, 200])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], SHAPES[3], SHAPES[6]], ids=str)
def test_budget_keeps_the_best_nodes(shape, budget):
    """Closed under parents, in rank order, and no node left out scores more than one kept."""
    shape = with_budget(shape, budget)

    @settings(max_examples=25, deadline=None)
    @given(st.tuples(inputs(shape)))
    def check(batch):
        tree = compiled_build(shape, *as_arrays(shape, batch))
        nodes = trie(shape, *batch[0])
        kept = [path for path, _ in sorted(paths_of(tree, 0).items(), key=lambda item: item[1])][1:]
        check_rows(shape, tree, 0, nodes, kept)
        assert len(kept) == min(budget, len(nodes))
        scores = [nodes[path][0] for path in kept]
        slack = 1e-6  # float32 products of at most five factors against float64
        assert all(a >= b * (1 - slack) - 1e-37 for a, b in itertools.pairwise(scores))
        left_out = [node[0] for path, node in nodes.items() if path not in kept]
        assert not left_out or max(left_out) <= scores[-1] * (1 + slack) + 1e-37

    check()


@settings(max_examples=60, deadline=None)
@given(
    log_probs=st.lists(st.lists(st.floats(-1e-6, 1e-6), min_size=3, max_size=3), min_size=3, max_size=3),
    counts=st.lists(st.integers(1, 2**24), min_size=4, max_size=4),
    budget=st.sampled_from([2, 5, 9]),
    ngram_scale=st.floats(1 / 64, 1, width=32),
)
def test_rounding_never_parts_child_and_parent(log_probs, counts, budget, ngram_scale):
    """Probabilities next to 1 and counts beyond float32: every product rounds, still no child outranks its parent."""
    shape = TreeSpec((3, 3, 3), 4, node_budget=budget)
    candidates = [(jnp.arange(3, dtype=jnp.int32)[None], jnp.asarray([row], jnp.float32)) for row in log_probs]
    chains = jnp.asarray([[[[0, 1, 2], [4, 4, 4], [4, 4, 5], [0, 5, 5]]]], jnp.int32)
    ngrams = (chains, jnp.asarray([[counts]], jnp.int32), jnp.asarray([[sum(counts)]], jnp.int32))
    tree = compiled_build(shape, jnp.zeros((1,), jnp.int32), candidates, ngrams, jnp.array([ngram_scale], jnp.float32))
    assert len(paths_of(tree, 0)) == budget + 1


def test_ties_go_to_the_shallower_then_the_earlier():
    shape = TreeSpec((3, 3), node_budget=6)
    sure = jnp.zeros((1, 3), jnp.float32)
    candidates = [(jnp.asarray([[5, 6, 7]], jnp.int32), sure), (jnp.asarray([[8, 9, 4]], jnp.int32), sure)]
    tree = compiled_build(shape, jnp.zeros((1,), jnp.int32), candidates, None)
    np.testing.assert_array_equal(tree.tokens, [[0, 5, 6, 7, 8, 9, 4]])
    np.testing.assert_array_equal(tree.parents, [[0, 0, 0, 0, 1, 1, 1]])


def test_a_worked_example():
    """Heads propose 1 then 2 or 3; chains of 1 are (2, 4, 5) twice and (6, 4, 5) once; the key has probability 0.5."""
    shape = TreeSpec((1, 2), 3, node_budget=6, keyed_by_root=False)
    candidates = [
        (jnp.asarray([[1]], jnp.int32), jnp.log(jnp.asarray([[0.5]], jnp.float32))),
        (jnp.asarray([[2, 3]], jnp.int32), jnp.log(jnp.asarray([[0.25, 0.5]], jnp.float32))),
    ]
    chains = jnp.asarray([[[[2, 4, 5], [6, 4, 5], [0, 0, 0]]]], jnp.int32)
    ngrams = (chains, jnp.asarray([[[2, 1, 0]]], jnp.int32), jnp.asarray([[4]], jnp.int32))
    tree = compiled_build(shape, jnp.asarray([9], jnp.int32), candidates, ngrams)
    # 0.5 | 1,3: 0.25 | 1,2: max(0.125, 0.5*2/5) = 1,2,4 = 1,2,4,5: 0.2 | 1,6: 0.1, before its child of the same score
    np.testing.assert_array_equal(tree.tokens, [[9, 1, 3, 2, 4, 5, 6]])
    np.testing.assert_array_equal(tree.parents, [[0, 0, 1, 1, 3, 4, 1]])
    np.testing.assert_array_equal(tree.drafted_by_ngram_only, [[False, False, False, False, True, True, True]])
    np.testing.assert_array_equal(tree.depths, [[0, 1, 2, 2, 3, 4, 2]])


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": (3, 0)},
        {"widths": ()},
        {"widths": (), "ngram_k": 3, "keyed_by_root": False},
        {"widths": (3,), "node_budget": 0},
        {"widths": (), "ngram_k": 3, "node_budget": 0},
        {"widths": (3,), "ngram_k": 3, "ngram_depth": 4},
        {"widths": (3, 1), "node_set": ((0,), (1,), (0, 0))},
    ],
)
def test_impossible_shapes_are_refused(arguments):
    with pytest.raises(UserError):
        TreeSpec(**arguments)


def test_inputs_that_do_not_fit_the_shape_are_refused():
    candidates = [(jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.float32))]
    for shape in (TreeSpec((3,)), TreeSpec((2, 2)), TreeSpec((2,), 3)):
        with pytest.raises(ValueError, match="fit"):
            build(shape, jnp.zeros((1,), jnp.int32), shared_levels(shape, candidates), None)


@pytest.mark.parametrize("node_set", [None, NODE_SET], ids=["product", "node set"])
@pytest.mark.parametrize("budget", [1, 3, 9])
@pytest.mark.parametrize("chains", [0, 4])
def test_nodes_that_a_budget_cannot_keep_change_no_tree(node_set, budget, chains):
    widths = (3, 3, 3) if node_set is None else widths_of(node_set)
    kept = product_within(widths, budget) if node_set is None else within_budget(node_set, budget, shared=True)
    whole = TreeSpec(widths, chains, 3, budget, node_set=node_set)
    small = TreeSpec(widths_of(kept), chains, 3, budget, node_set=kept)
    assert small.rows == whole.rows
    rng = np.random.default_rng(budget)
    batch = 40
    chances = -np.sort(-rng.choice([0.0, 0.05, 0.1, 0.2, 0.4, 1.0], (len(widths), batch, 3)), axis=-1)
    tokens = rng.permuted(np.broadcast_to(np.arange(VOCAB), (len(widths), batch, VOCAB)), axis=-1).astype(np.int32)
    ngrams = None
    if chains:
        # So many that no two chains have the same: of equal chains, one that a candidate shares comes first.
        counts = rng.integers(0, 10_000, (batch, 1, chains)).astype(np.int32)
        found = rng.integers(0, VOCAB, (batch, 1, chains, 3)).astype(np.int32)
        ngrams = (jnp.asarray(found), jnp.asarray(counts), jnp.asarray(counts.sum(-1).astype(np.int32)))
    root, trees = jnp.zeros(batch, jnp.int32), []
    for shape in (whole, small):
        with np.errstate(divide="ignore"):
            candidates = [
                (jnp.asarray(ids[:, :width]), jnp.log(jnp.asarray(own[:, :width], jnp.float32)))
                for ids, own, width in zip(tokens, chances, shape.widths, strict=False)
            ]
        trees.append(compiled_build(shape, root, candidates, ngrams))
    for field in ("tokens", "parents", "depths", "valid", "mask", "deepest"):
        np.testing.assert_array_equal(getattr(trees[0], field), getattr(trees[1], field), err_msg=field)


@pytest.mark.parametrize("node_set", [None, NODE_SET], ids=["product", "node set"])
@pytest.mark.parametrize(
    ("budget", "limited"),
    [(None, False), (1, True), (2, False), (3, False), (3, True), (5, True), (9, False), (9, True)],
)
def test_expanding_within_a_budget_loses_no_node(node_set, budget, limited):
    """Candidates that differ from parent to parent: the budget's best of the full expansion, by brute force; `limited`:
    the tree lacks the nodes that the budget cannot keep."""
    if node_set is not None and budget is not None:
        node_set = tuple(path for path in node_set if len(path) <= budget)
    widths = (2, 3, 2)[:budget] if node_set is None else widths_of(node_set)
    kept, narrow = node_set, widths
    if limited and budget is not None:
        kept = node_set and within_budget(node_set, budget, shared=False)
        narrow = widths_of(kept) if kept else tuple(min(w, budget - depth) for depth, w in enumerate(widths))
    shape = TreeSpec(narrow, node_budget=budget, node_set=kept, per_parent=True)
    rng = np.random.default_rng(budget or 0)

    @jax.jit
    def grow(tables):
        """tables[depth] maps a parent's path of ranks to its candidates' (tokens, log probabilities)."""
        levels, parents = [], jnp.zeros((2, 1), jnp.int32)
        code = jnp.zeros((2, 1), jnp.int32)
        rows = jnp.arange(2, dtype=jnp.int32)[:, None]
        for depth in range(len(narrow)):
            if levels:
                parents = select_frontier(shape, levels)
                last = narrow[depth - 1]
                code = jnp.take_along_axis(code, parents // last, axis=1) * widths[depth - 1] + parents % last
            tokens, log_probs = (table[rows, code][..., : narrow[depth]] for table in tables[depth])
            levels.append(next_level(shape, levels, parents, tokens, log_probs))
        return build(shape, jnp.arange(2, dtype=jnp.int32), levels)

    for _ in range(20):
        tables = []
        for depth, width in enumerate(widths):
            above = math.prod(widths[:depth])
            tokens = rng.permuted(np.broadcast_to(np.arange(7), (2, above, 7)), axis=-1)[..., :width]
            chances = np.where(rng.random((2, above, width)) < 0.1, 0.0, rng.random((2, above, width)))
            chances = -np.sort(-chances, axis=-1)  # candidates come best first
            with np.errstate(divide="ignore"):
                tables.append((tokens.astype(np.int32), np.log(chances).astype(np.float32)))
        tree = grow(tables)
        for row in range(2):
            nodes, level = {}, [((), 0, (), 1.0)]
            for width, (tokens, log_probs) in zip(widths, tables, strict=True):
                above, level = level, []
                for (ranks, code, path, chance), rank in itertools.product(above, range(width)):
                    log_prob, below = float(log_probs[row, code, rank]), (*ranks, rank)
                    if log_prob > -math.inf and (node_set is None or below in node_set):
                        longer, score = (*path, int(tokens[row, code, rank])), chance * math.exp(log_prob)
                        nodes[longer] = [score, False]
                        level.append((below, code * width + rank, longer, score))
            best = sorted(nodes, key=lambda path: -nodes[path][0])[:budget]
            check_rows(shape, tree, row, nodes, best)


@pytest.mark.parametrize(
    ("budget", "node_set", "expanded"),
    [(1, None, (1,)), (3, None, (1, 2, 1)), (7, None, (1, 3, 5)), (None, None, (1, 3, 9)), (None, "set", (1, 2, 1))],
)
def test_head_rows_that_a_budget_pays_for(budget, node_set, expanded):
    widths = (3, 3, 3)[:budget] if node_set is None else widths_of(NODE_SET)
    shape = TreeSpec(widths, node_budget=budget, node_set=NODE_SET if node_set else None, per_parent=True)
    assert tuple(shape.expanded(depth) for depth in range(1, len(widths) + 1)) == expanded


@pytest.mark.parametrize("per_parent", [False, True])
@pytest.mark.parametrize("budget", [None, 4])
def test_a_node_set_is_the_tree(per_parent, budget):
    """Tokens say their ranks, so that the paths can be read; the best ranks come first when a budget is short."""
    shape = TreeSpec(widths_of(NODE_SET), node_budget=budget, node_set=NODE_SET, per_parent=per_parent)
    log_probs = [np.log(np.array([0.5, 0.3, 0.1])[:width]).astype(np.float32) for width in shape.widths]
    if per_parent:
        levels = []
        for depth, width in enumerate(shape.widths, 1):
            parents = select_frontier(shape, levels) if levels else jnp.zeros((1, 1), jnp.int32)
            dims = (1, shape.expanded(depth), width)
            tokens = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), dims)
            levels.append(next_level(shape, levels, parents, tokens, jnp.broadcast_to(log_probs[depth - 1], dims)))
    else:
        candidates = [(jnp.arange(len(row), dtype=jnp.int32)[None], jnp.asarray(row[None])) for row in log_probs]
        levels = shared_levels(shape, candidates)
    tree = build(shape, jnp.zeros((1,), jnp.int32), levels)
    expected = set(NODE_SET) if budget is None else {(0,), (1,), (0, 0), (1, 0)}  # 0.5, 0.3, 0.25, 0.15
    assert set(paths_of(tree, 0)) == {(), *expected}
    assert tree.tokens.shape[1] == 1 + len(expected)


def test_a_chain_runs_through_a_path_outside_the_node_set():
    """Heads may hold 1 and 1,2; the chain 1,3,4 is keyed by 1 and leaves the set, the chain 1,2,6 starts in it."""
    shape = TreeSpec((1, 1), 2, ngram_depth=2, keyed_by_root=False, node_set=((0,), (0, 0)))
    half = jnp.log(jnp.asarray([[0.5]], jnp.float32))
    levels = shared_levels(shape, [(jnp.asarray([[token]], jnp.int32), half) for token in (1, 2)])
    chains = jnp.asarray([[[[3, 4, 5], [2, 6, 5]]]], jnp.int32)
    ngrams = (chains, jnp.asarray([[[2, 1]]], jnp.int32), jnp.asarray([[3]], jnp.int32))
    tree = build(shape, jnp.zeros((1,), jnp.int32), levels, ngrams)
    by_chain = {path: bool(tree.drafted_by_ngram_only[0, row]) for path, row in paths_of(tree, 0).items()}
    assert by_chain == {(): False, (1,): False, (1, 2): False, (1, 3): True, (1, 3, 4): True, (1, 2, 6): True}


def _golden(name):
    if not (GOLDEN / name / "golden.npz").exists():
        pytest.skip(f"GOLDEN DATA MISSING: {GOLDEN / name} is not there, the reference's tree was NOT compared")
    return np.load(GOLDEN / name / "golden.npz")


@pytest.mark.parametrize("name", ["llama2_yarn", "llama3_1"])
def test_golden_tree(name):
    """The reference's [1, 3, 3, 3] tree, up to node order: the same paths at the same positions."""
    golden = _golden(name)
    tokens, indices = golden["tree_tokens"], golden["tree_indices"]
    reference_mask, depths = golden["tree_attn_mask"][0, 0] > 0, golden["tree_position_ids"]
    widths = (1, 3, 3, 3)
    drafts = [tokens[[np.flatnonzero(indices == 1 + 10 * i + j)[0] for j in range(w)]] for i, w in enumerate(widths)]
    candidates = [(jnp.asarray(d[None], jnp.int32), jnp.zeros((1, len(d)), jnp.float32)) for d in drafts]
    tree = compiled_build(TreeSpec(widths), jnp.asarray(tokens[:1], jnp.int32), candidates, None)

    def paths(mask, tokens, depths):
        rows = [sorted(np.flatnonzero(seen), key=lambda row: depths[row]) for seen in mask]
        assert all([int(depths[row]) for row in seen] == list(range(len(seen))) for seen in rows)
        return sorted(tuple(int(tokens[row]) for row in seen) for seen in rows)

    ours = paths(np.asarray(tree.mask[0]), np.asarray(tree.tokens[0]), np.asarray(tree.depths[0]))
    assert ours == paths(reference_mask, tokens, depths)
    assert len(set(ours)) == 41
