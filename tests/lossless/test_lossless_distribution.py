"""Tokens drawn inside the tree follow the target's distribution, and the test would notice if they did not.

Equality with plain decoding proves it already if plain decoding is right; this compares with exact probabilities from
teacher forcing and processors rewritten in NumPy.
"""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from flax import nnx
from scipy import stats

from tests.engine_fixture import layout_of, prefilled_state, settings_of
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.models.attention import causal_attention
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sample.gumbel import row_keys
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import plans
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter
from tokenswift_jax.speculate.merged_drafter import MergedDrafter
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.step.draft import draft_tree
from tokenswift_jax.step.iteration import iterate
from tokenswift_jax.step.loop import catch_up, run_chunk
from tokenswift_jax.step.state import StepInputs

VOCAB, TOKENS, SAMPLES, AT_ONCE = 6, 6, 8192, 512
PROMPT = [0, 3, 1, 1, 4, 2, 5, 0, 2]
SAMPLING = SamplingConfig(min_p=0.08, repetition_penalty=1.4, penalty_window=3, seed=11)
# Fixed seeds: the tests below either always pass or always fail. Ten chi-squares at this level fail a correct program
# for one choice of seeds in a thousand.
LEVEL = 1e-4
# Fewer expected and a cell's count is not near enough to normal for chi-square.
LEAST_EXPECTED = 5


@functools.cache
def setting():
    """The model, its plan, a state whose root is the prompt's last token, and what its steps read."""
    model = small_models.random_model(VOCAB, layers=1, spread=1.2)
    features = features_of(SAMPLING)
    speculation = SpeculationConfig(
        mode="tokenswift",
        schedule="partial",
        tree=(1, 3, 2, 2),
        ngram_k=1,
        ngram_slots=4,
        draft_cache=32,
        draft_sinks=4,
    )
    named = plans.speculative_plans(model.config, speculation, features, "cpu")[0]
    assert named.plan.drafter == MergedDrafter(CachedHeadsDrafter(DraftCacheShape(32, 4, 1, None)), NgramDrafter(4))
    state = prefilled_state(model, [PROMPT], layout_of(named.plan, jnp.float32, 256))
    settings = settings_of(SAMPLING, vocab=VOCAB, prompt_length=len(PROMPT), max_new_tokens=TOKENS)
    inputs = StepInputs(model.params, settings)
    return model, named.plan, plans.autoregressive_plan(model.config, features).plan, state, inputs


@functools.cache
def samples():
    """Tokens [SAMPLES, TOKENS] of as many sequences of one seed, and each token's index in its iteration."""
    model, plan, plain, state, inputs = setting()

    def one(keys):
        mine = replace(inputs, sequence=replace(inputs.sequence, keys=keys[None]))
        first, _, _, _ = iterate(nnx.merge(model.graphdef, model.params), state, (), mine, plain)
        ready = catch_up(plan.config, plan.drafter, mine.sequence, first)
        _, chunk = run_chunk(model.graphdef, plan, TOKENS + plan.depth, mine, ready, jnp.int32(TOKENS))
        start = len(PROMPT)
        records = chunk.emitted.records[0, : TOKENS - 1]
        return jnp.concatenate([first.tokens[0, start : start + 1], records[:, 0]]), records[:, 2]

    many = jax.jit(jax.vmap(one))
    keys = row_keys(SAMPLING.seed, jnp.arange(SAMPLES, dtype=jnp.uint32))
    parts = [many(keys[begin : begin + AT_ONCE]) for begin in range(0, SAMPLES, AT_ONCE)]
    return tuple(np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2))


@functools.cache
def exact():
    """{path: probabilities [VOCAB] of the token after prompt and path}, for paths of 0 to TOKENS - 1 tokens."""
    model = setting()[0]
    paths = np.array(list(itertools.product(range(VOCAB), repeat=TOKENS - 1)), np.int32)
    ids = np.concatenate([np.tile(np.array(PROMPT, np.int32), (len(paths), 1)), paths], axis=1)

    @jax.jit
    def run(params, ids):
        decoder = nnx.merge(model.graphdef, params)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
        return decoder.logits(decoder.hidden(ids, positions, causal_attention(model.config), None)[0])

    logits = np.asarray(run(model.params, jnp.asarray(ids)), np.float64)[:, len(PROMPT) - 1 :]
    table = {}
    for path, rows in zip(paths.tolist(), logits, strict=True):
        for length in range(TOKENS):
            table.setdefault(tuple(path[:length]), rows[length])
    return {path: probabilities(row, PROMPT + list(path)) for path, row in table.items()}


def probabilities(logits, text):
    """Penalty over the window, temperature 1, min-p: the definition of SAMPLING, in NumPy."""
    scores = logits.copy()
    for token in set(text[-SAMPLING.penalty_window :]):
        scores[token] *= SAMPLING.repetition_penalty if scores[token] < 0 else 1 / SAMPLING.repetition_penalty
    weights = np.exp(scores - scores.max())
    weights[weights < SAMPLING.min_p * weights.max()] = 0
    return weights / weights.sum()


def chi_square(tokens):
    """The p-value of the last column given the columns before it, over all paths with enough samples.

    Returns it with the share of the samples that those paths hold.
    """
    statistic, freedom, used = 0.0, 0, 0
    paths, inverse = np.unique(tokens[:, :-1], axis=0, return_inverse=True)
    for index, path in enumerate(paths):
        counts = np.bincount(tokens[inverse == index, -1], minlength=VOCAB)
        expected = exact()[tuple(path.tolist())] * counts.sum()
        assert not counts[expected == 0].any()  # what min-p removes is never drawn
        cells = expected > 0
        if expected[cells].min() >= LEAST_EXPECTED:
            statistic += ((counts - expected)[cells] ** 2 / expected[cells]).sum()
            freedom += cells.sum() - 1
            used += counts.sum()
    return stats.chi2.sf(statistic, freedom), used / len(tokens)


def test_the_exact_distributions_are_worth_testing():
    """Several tokens are likely, and both the filter and the window matter."""
    entropies = [stats.entropy(p) for p in exact().values()]
    assert np.mean(entropies) > 0.8
    assert 0.1 < np.mean([(p == 0).mean() for p in exact().values()]) < 0.6


@pytest.mark.parametrize("position", range(1, TOKENS))
def test_tokens_inside_the_tree_follow_the_exact_distribution(position):
    tokens, offsets = samples()
    assert (offsets[:, position - 1] > 0).mean() > (0.2 if position > 1 else -1)  # drawn below a drafted node
    p_value, used = chi_square(tokens[:, : position + 1])
    assert used > 0.1
    assert p_value > LEVEL


@pytest.mark.parametrize("depth", range(2, TOKENS))
def test_so_do_those_of_each_depth_of_the_tree(depth):
    """Only first iterations: its depth-th draw, made below depth - 1 drafted nodes, given that the path was accepted.

    Acceptance down to a node is decided by the draws above it, so given the path the draw itself is free.
    """
    tokens, offsets = samples()
    inside = (offsets[:, : depth - 1] == np.arange(depth - 1)).all(1)
    p_value, used = chi_square(tokens[inside][:, :depth])
    assert inside.sum() > 500
    assert used > 0.2
    assert p_value > LEVEL


def candidate_paths():
    """{first token: leaf paths [leaves, 4]} of the heads' tree, without noise, as the reference drafts."""
    model, plan, plain, state, inputs = setting()
    plan = replace(plan, drafter=plan.drafter.candidates, tree=replace(plan.tree, ngram_k=0))
    state = replace(state, drafter=layout_of(plan, jnp.float32, 256).empty_parts(1))

    @jax.jit
    def draft(first):
        decoder = nnx.merge(model.graphdef, model.params)
        after, _, _, _ = iterate(decoder, state, (), inputs, plain)
        after = replace(after, tokens=after.tokens.at[0, len(PROMPT)].set(first))
        ready = catch_up(plan.config, plan.drafter, inputs.sequence, after)
        return draft_tree(decoder, ready, (), inputs, plan, None)[0]

    found = {}
    for first in range(VOCAB):
        tree = jax.tree.map(np.asarray, draft(jnp.int32(first)))
        leaves = np.flatnonzero(tree.valid[0] & (tree.depths[0] == plan.depth))
        ordered = [[row for row in np.flatnonzero(tree.mask[0, leaf]) if row] for leaf in leaves]
        found[first] = np.array([tree.tokens[0, rows] for rows in ordered])
    return found


def test_an_independent_draw_a_leaf_would_be_noticed():
    """The reference program's rule, a draw of its own for every candidate path and the longest match, must fail."""
    rng = np.random.default_rng(0)
    paths = candidate_paths()
    emitted = []
    for first in samples()[0][:2000, 0].tolist():
        best = []
        for path in paths[first].tolist():
            drawn = [first]
            for token in [*path, None]:
                drawn.append(rng.choice(VOCAB, p=exact()[tuple(drawn)]))
                if drawn[-1] != token:
                    break
            best = max(best, drawn, key=len)
        emitted.append(best)
    second = np.array([one[:2] for one in emitted])
    third = np.array([one[:3] for one in emitted if len(one) > 2])
    for tokens in (second, third):
        p_value, used = chi_square(tokens)
        assert used > 0.3
        assert p_value < 1e-20
