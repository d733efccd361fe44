"""The worked example of docs/how-it-works.md: its inputs are read from the page, its results are computed here."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.implementation import compiling_for
from tests.engine_fixture import part_of, settings_of
from tokenswift_jax.kv.cache import StoredKV
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_positions import DraftCacheShape
from tokenswift_jax.kv.forward import Rows
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import features_of
from tokenswift_jax.sample.gumbel import gumbel_noise, row_keys
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import candidates as heads_candidates
from tokenswift_jax.speculate import draft_cache_part, ngram, ngram_calibration, ngram_fill
from tokenswift_jax.speculate.heads_drafter import CachedHeadsDrafter
from tokenswift_jax.speculate.merged_drafter import Calibration, MergedDrafter
from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculate.tree import build
from tokenswift_jax.speculate.tree_expand import shared_levels
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step import verify as verification
from tokenswift_jax.step.commit import commit
from tokenswift_jax.step.draft import draft_tree
from tokenswift_jax.step.state import DecodeState, StepInputs

PAGE = (Path(__file__).parents[1] / "docs" / "how-it-works.md").read_text(encoding="utf-8")
SAMPLING = SamplingConfig(temperature=1.0, repetition_penalty=2.0, penalty_window=2, seed=0)
ROUNDING = 0.0051  # the page shows noise and probabilities to 2 digits
CAPACITY = 32
DRAFT_CACHE = DraftCacheShape(24, 4, 1, None)


def table(name):
    """The rows of the markdown table below <!-- example: NAME -->, as dicts of stripped cells without backticks."""
    lines = PAGE.split(f"<!-- example: {name} -->")[1].strip().splitlines()
    lines = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    heading, _, *body = [[cell.strip(" `*") for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(heading, row, strict=True)) for row in body]


def listed(name):
    """The text in backticks in the line below <!-- example: NAME -->."""
    return re.findall(r"`([^`]+)`", PAGE.split(f"<!-- example: {name} -->")[1].strip().splitlines()[0])


WORDS = list(table("noise")[0])[1:]
IDS = {word: token for token, word in enumerate(WORDS)}


def numbers(row):
    return [float(row[word]) for word in WORDS]


def penalised(logits, window):
    """Float64: a positive logit of a token in the window is halved, a negative one doubled."""
    scores = np.array(logits)
    for token in window:
        scores[token] *= 0.5 if scores[token] > 0 else 2.0
    return scores


def iteration(monkeypatch, way):
    """One iteration as `iterate` runs it, with a target and heads whose logits are the page's: every value it makes;
    its tree, acceptance and n-grams by the reference or by a GPU's kernels, interpreted."""
    text = [IDS[word] for word in listed("text")]
    n, rows = len(text) - 1, len(table("tree"))
    target = {int(row["row"]): numbers(row) for row in table("target")}
    logits = np.zeros((1, rows, len(WORDS)), np.float32)
    for row, values in target.items():
        logits[0, row] = values
    drafted = jnp.asarray([[numbers(row) for row in table("drafts")]], jnp.float32)
    config = SimpleNamespace(
        vocab_size=8, num_layers=1, num_kv_heads=1, head_dim=1, sliding_windows=(None,), draft_vocab=None
    )
    model = SimpleNamespace(
        config=config,
        norm=lambda hidden: hidden,
        heads_input=lambda hidden: hidden,
        draft_heads=lambda hidden, *_: hidden[:, None],
        project=lambda normed: drafted,
        logits=lambda hidden: hidden,
    )
    # A key is its position in committed slots, 100 + row in the rows of this pass.
    keys = 100 + jnp.arange(rows, dtype=jnp.float32)[None, None, None, :, None]
    query = jnp.zeros((1, 1, 1, 1), jnp.float32)
    one = keys[:, :, :, :1]
    drafting = Rows(jnp.zeros((1, 1, 1), jnp.float32), StoredKV(one, one), query)
    positions_run, candidates_run = [], []

    def target_forward(model, rows, cache):
        positions_run.append(rows.positions)
        new = StoredKV(keys, keys)
        return Rows(jnp.asarray(logits), new, query), cache.append(0, new, rows.lengths)

    def recording_levels(shape, candidates):
        candidates_run.append(candidates)
        return shared_levels(shape, candidates)

    monkeypatch.setattr(heads_candidates, "shared_levels", recording_levels)
    monkeypatch.setattr(draft_cache_part, "forward_rows", lambda model, rows, cache: (drafting, cache))
    monkeypatch.setattr(verification, "forward_rows", target_forward)
    shape = TreeSpec((1, 2), 1, keyed_by_root=False)
    drafter = MergedDrafter(CachedHeadsDrafter(DRAFT_CACHE), NgramDrafter(4))
    plan = Plan(config, features_of(SAMPLING), drafter, shape)
    settings = settings_of(SAMPLING, vocab=len(WORDS), prompt_length=2, max_new_tokens=CAPACITY - 2)
    inputs = StepInputs(None, settings)

    @jax.jit
    def run():
        noise = gumbel_noise(settings.keys, n + 1 + jnp.arange(5, dtype=jnp.int32)[None], len(WORDS))
        tree, state = draft_tree(model, state_before(text, config), (), inputs, plan, noise)
        found, verified = verification.verify(model, state, inputs, plan, tree, noise)
        draws = found.draws
        after, _, acceptance, records, count = commit(verified, (), inputs, plan, tree, found)
        seen = positions_run.pop(), candidates_run.pop()
        return noise, tree, draws, verified, acceptance, after, records, count, *seen

    names = ("noise", "tree", "draws", "verified", "acceptance", "after", "records", "count", "positions", "candidates")
    with compiling_for(way, interpret=way != "reference"):
        found = jax.device_get(run())  # JAX compiles a program for every index into an array on the device
    return SimpleNamespace(text=text, n=n, target=target, **dict(zip(names, found, strict=True)))


def state_before(text, config):
    n, slots = len(text) - 1, jnp.arange(CAPACITY, dtype=jnp.float32)[None, None, None, :, None]
    tokens = jnp.asarray([text + [0] * (CAPACITY - len(text))], jnp.int32)
    keys = jnp.where(slots < n, slots, jnp.float32(-1))
    return DecodeState(
        tokens=tokens,
        length=jnp.asarray([n], jnp.int32),
        finish=jnp.zeros(1, jnp.int32),
        cache=FullCache(keys, keys),
        hidden=jnp.zeros((1, len(WORDS)), jnp.float32),
        query=jnp.zeros((1, 1, 1, 1), jnp.float32),
        last_positions=penalty.last_positions(tokens, jnp.asarray([n + 1], jnp.int32), len(WORDS)),
        drafter=(
            DRAFT_CACHE.empty(config, 1, jnp.dtype(jnp.float32)),
            ngram_fill.fill(ngram.empty(1, CAPACITY, 4), tokens, jnp.asarray([n - 2], jnp.int32)),
            Calibration(ngram_calibration.unobserved(1)),
        ),
    )


@pytest.fixture(scope="module", params=["reference", "gpu"])
def example(request):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return iteration(monkeypatch, request.param)


def test_the_noise(example):
    shown = table("noise")
    assert [int(row["position"]) for row in shown] == [8, 9, 10, 11, 12]
    np.testing.assert_allclose(example.noise[0], [numbers(row) for row in shown], rtol=0, atol=ROUNDING)
    again = gumbel_noise(row_keys(0, jnp.zeros(1, jnp.uint32)), jnp.asarray([[9]], jnp.int32), 8)
    np.testing.assert_array_equal(again[0, 0], example.noise[0, 1])


def test_the_tree_and_its_mask(example):
    for index, row in enumerate(table("tree")):
        assert int(row["row"]) == index
        assert [int(x) for x in row["sees"].split()] == np.flatnonzero(example.tree.mask[0, index]).tolist()
        assert bool(example.tree.valid[0, index]) == (row["word"] != "-")
        if row["word"] != "-":
            assert int(example.tree.tokens[0, index]) == IDS[row["word"]]
            assert int(example.tree.depths[0, index]) == int(row["depth"])
            assert int(example.positions[0, index]) == int(row["position"])
            assert bool(example.tree.drafted_by_ngram_only[0, index]) == (row["drafted by"] == "n-gram")
    parents = {int(row["row"]): int(row["parent"]) for row in table("tree") if row["parent"] != "-"}
    assert {row: int(example.tree.parents[0, row]) for row in parents} == parents
    drawn = PAGE.split("<!-- example: matrix -->")[1].split("```")[1].split("\n", 1)[1]
    matrix = [[cell == "x" for cell in line.split("|")[1].split()] for line in drawn.strip().splitlines()[1:]]
    np.testing.assert_array_equal(matrix, example.tree.mask[0])


def test_the_candidates_and_the_budget(example):
    """Candidates come from the page's draft logits, the root's window and the shared noise; a budget ranks them."""
    window = {IDS[word] for word in listed("window")}
    assert window == set(example.text[-2:])
    shares_of = []
    for depth, row in enumerate(table("drafts")):
        scores = penalised(numbers(row), window) + np.asarray(example.noise[0, depth], np.float64)
        best = np.argsort(-scores)[: depth + 1]
        shares = np.exp(scores[best]) / np.exp(scores).sum()
        shown = [entry.split() for entry in row["candidates"].split(", ")]
        assert [WORDS[token] for token in best] == [word for word, _ in shown]
        np.testing.assert_allclose(shares, [float(share) for _, share in shown], rtol=0, atol=ROUNDING)
        tokens, log_probs = example.candidates[depth]
        np.testing.assert_array_equal(tokens[0], best)
        np.testing.assert_allclose(np.exp(log_probs[0]), shares, rtol=1e-5)  # float32 against float64
        shares_of.append(shares)
    key = example.candidates[0][0]
    shape = TreeSpec((1, 2), 1, node_budget=3, keyed_by_root=False)

    @jax.jit
    def ranked(table, key, candidates):
        found = ngram.lookup(table, key, 1)
        return found, build(shape, key[:, 0], shared_levels(shape, candidates), found)

    found, small = jax.device_get(ranked(part_of(example.verified, NgramTable), key, example.candidates))
    assert [WORDS[token] for token in found[0][0, 0, 0]] == listed("chain")
    assert (int(found[1][0, 0, 0]), int(found[2][0, 0])) == (1, 1)
    kept = [WORDS[token] for token in np.asarray(small.tokens[0])[1:]]
    assert kept == listed("budget")
    cat, (sat, on) = shares_of[0][0], shares_of[1]
    expected = {1: cat, 2: max(cat * sat, cat / 2), 3: cat * on, 5: cat / 2, 6: cat / 2}
    for row in table("tree"):
        if row["score"] != "-":
            assert float(row["score"]) == pytest.approx(expected.pop(int(row["row"])), abs=ROUNDING)
    assert not expected


def test_the_draws(example):
    """Float64 NumPy: penalise the row's own window, add the noise of its depth, take the best."""
    for row in table("target"):
        index = int(row["row"])
        path = [int(x) for x in np.flatnonzero(example.tree.mask[0, index])]
        window = {*(example.text + [int(example.tree.tokens[0, r]) for r in path[1:]])[-2:]}
        assert {IDS[word] for word in row["penalised"].split()} == window
        scores = penalised(numbers(row), window)
        depth = int(example.tree.depths[0, index])
        assert int(row["draws"]) == example.n + depth + 1
        best = int(np.argmax(scores + np.asarray(example.noise[0, depth], np.float64)))
        assert WORDS[best] == row["draw"]
        assert int(example.draws[0, index]) == best
    assert len(table("target")) == int(example.tree.valid.sum())


def test_the_acceptance_and_the_commit(example):
    emitted = [WORDS[token] for token in np.asarray(example.acceptance.emitted[0]) if token >= 0]
    assert emitted == listed("emitted")
    path = np.asarray(example.acceptance.path[0])[: int(example.acceptance.accepted[0]) + 1].tolist()
    assert path == [int(row) for row in listed("path")]
    assert int(example.count[0]) == len(emitted)
    assert int(example.after.length[0]) == example.n + len(emitted)
    assert np.asarray(example.records[0, : len(emitted), 1]).tolist() == [1, 1, 2, 0]
    for name, state in (("verified", example.verified), ("committed", example.after)):
        (slots,) = table(name)
        keys = np.asarray(state.cache.keys[0, 0, 0, :, 0]).astype(int)
        for slot, content in slots.items():
            if content != "scratch" and slot != "slot":
                shown = re.fullmatch(r"(position|row) (\d+)", content)
                assert shown, content
                assert keys[int(slot)] == int(shown[2]) + (100 if shown[1] == "row" else 0)
    assert (keys[: example.n] == np.arange(example.n)).all()
    after = int(example.after.length[0])
    assert (keys[example.n : after] == 100 + np.asarray(path)).all()
    assert int(part_of(example.after, NgramTable).inserted[0]) == after - 2


def test_plain_decoding_gives_the_same_words(example):
    """One token a step: the same target, whose logits depend on the text alone, the same noise by position."""
    by_path = {}
    for index in example.target:
        path = np.flatnonzero(example.tree.mask[0, index])[1:]
        by_path[tuple(np.asarray(example.tree.tokens[0])[path].tolist())] = example.target[index]
    text = list(example.text)
    for position in range(len(text), len(text) + len(listed("emitted"))):
        scores = penalised(by_path[tuple(text[len(example.text) :])], {*text[-2:]})
        noise = gumbel_noise(row_keys(0, jnp.zeros(1, jnp.uint32)), jnp.asarray([[position]], jnp.int32), 8)
        text.append(int(np.argmax(scores + np.asarray(noise[0, 0], np.float64))))
    assert [WORDS[token] for token in text[len(example.text) :]] == listed("emitted")
