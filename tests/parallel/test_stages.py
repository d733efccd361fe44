"""Layers on two stages: the text of one device, an even share of bytes, few collectives, no copy of the cache."""

import itertools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from parallel_models import CAPACITY, FEW, first_call

import tokenswift_jax as ts
from tests.engine_fixture import part_of
from tests.tiny import tiny_config
from tokenswift_jax.engine.engine import Engine
from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.engine.prefill import Prefix
from tokenswift_jax.engine.prompt_stream import PromptStream, cut
from tokenswift_jax.errors import UserError
from tokenswift_jax.hardware.collectives import collectives_of
from tokenswift_jax.kv.dense import BLOCK
from tokenswift_jax.kv.draft_positions import FAR_AWAY, DraftCache
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.parallel.report import mesh_table
from tokenswift_jax.parallel.rules import shardings
from tokenswift_jax.request import Request
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.step.loop import run_chunk

WINDOW, SINKS = 9, 4  # of the second stage's layer, and of `first_call`


@pytest.fixture(scope="module")
def runs():
    """(plan, program on two stages, plain decoding's results on one device, the program's)."""
    windows = (None, WINDOW)
    graph, plain, *given = first_call("autoregressive", windows=windows)
    alone = jax.jit(lambda i, s: run_chunk(graph, plain, FEW, i, s, jnp.int32(FEW)))(*given)
    staged, plan, *given = first_call("partial", stack=True, windows=windows)
    mesh = make_mesh(MeshSpec(stage=2))
    with jax.set_mesh(mesh):
        given = jax.device_put(tuple(given), shardings(mesh, tuple(given)))
        run = jax.jit(lambda i, s: run_chunk(staged, plan, FEW, i, s, jnp.int32(FEW)), donate_argnums=1)
        compiled = run.lower(*given).compile()
        return plan, compiled, alone, compiled(*given)


def test_two_stages_write_the_text_of_one_device(runs):
    """Also where their layers have different windows."""
    _, _, (alone, chunk), (state, split_chunk) = runs
    count = int(split_chunk.counts[0])
    assert FEW / 2 < count < FEW * split_chunk.iterations
    np.testing.assert_array_equal(split_chunk.emitted.records[:, :count, 0], chunk.emitted.records[:, :count, 0])
    stored = [np.asarray(each.cache.keys)[:, :, :, : count - 1] for each in (state, alone)]
    np.testing.assert_allclose(*stored, atol=1e-5)


def test_each_stage_selects_for_its_own_layers(runs):
    *_, (state, _) = runs
    draft = part_of(state, DraftCache)
    first, second = np.asarray(draft.positions)[:, 0, :, SINKS:]
    oldest = int(draft.selected[0]) - WINDOW
    assert oldest > SINKS
    assert not ((second > FAR_AWAY) & (second <= oldest)).any()
    assert ((first > FAR_AWAY) & (first <= oldest)).any()


def test_half_of_the_layers_and_of_both_caches_is_on_each_stage(runs):
    *_, (state, _) = runs
    draft = part_of(state, DraftCache)
    for split in (state.cache.keys, state.cache.values, draft.cache.keys, draft.positions, state.query):
        assert split.sharding.spec == P("stage", *[None] * (split.ndim - 1))
        assert {shard.data.nbytes for shard in split.addressable_shards} == {split.nbytes // 2}
    model = ts.load(mesh="stage=2")
    stored = Counter()
    for leaf in jax.tree.leaves(model.params):
        stored.update({shard.device: shard.data.nbytes for shard in leaf.addressable_shards})
    for leaf in jax.tree.leaves(model.params["stack"]):
        assert {shard.data.nbytes for shard in leaf.addressable_shards} == {leaf.nbytes // 2}
    table = mesh_table(dict(model.mesh.shape), {"parameters": model.params})
    assert {f"{size:,}" for size in stored.values()} == {table.split()[-1]}
    assert re.search(r"stack\.\*\.self_attn\.q_proj\.kernel +2 +2 x .*groups, embed, heads +stage ", table)


def test_layers_of_zeros_fill_the_last_stage():
    model, alone = ts.load(mesh="stage=3"), ts.load()
    assert model.mesh_notes[0] == "mesh stage=3: 4 layers are filled up to 6 with zeros"
    assert "a step passes through 3 stages of 2 layers one after the other" in model.mesh_notes[1]
    for place, leaf in enumerate(part["mlp"]["up_proj"]["kernel"][...] for part in model.params["stack"].values()):
        for stage, kernel in enumerate(np.asarray(leaf)):
            layer = 2 * stage + place
            expected = alone.params["layers"][layer]["mlp"]["up_proj"]["kernel"][...] if layer < 4 else 0 * kernel
            np.testing.assert_array_equal(kernel, expected)
    with pytest.raises(UserError, match="mesh stage=8 has more stages than the model has layers; mesh stage=4 fits"):
        ts.load(mesh="stage=8")


def test_a_forward_gathers_its_rows_once_a_turn(runs):
    """Beside them, an iteration gathers the tree and the draws of the first stage."""
    plan, compiled, *_ = runs
    rows, text = plan.rows, compiled.as_text()
    given = {("all-gather", 2 * 4 * each * plan.config.hidden_size): 2 for each in (rows, 1)}  # turns
    found = Counter({(each.kind, each.bytes): each.count for each in collectives_of(text)})
    assert {one: found[one] for one in given} == given
    others = sorted((found - Counter(given)).elements())
    assert [kind for kind, _ in others] == 2 * ["all-gather"]
    assert others[0][1] == 2 * 4 * 2 * rows, "the draws, and whether they are broken"
    assert others[1][1] <= 2 * 4 * rows * (6 + rows + plan.depth), "a number for each field and entry of the tree"
    assert not re.findall(rf"f32\[\S*{CAPACITY},{plan.config.head_dim}\]\S* copy\(", text), "XLA copies the cache"


def filled(model, prompt, prefix=None):
    """A prefill of a prompt through the stages, and the K/V of its first block and of the rest."""
    layout = Layout.of(model.config, jnp.dtype(jnp.float32), 512, SamplingFeatures.FILTERED, [])
    engine = Engine(model, layout, 2)
    prefill = engine.prefill([Request(prompt, ts.SamplingConfig(temperature=0.0), 4)], prefix=prefix)
    for _ in range(2 * prefill.total):
        prefill.advance()
    engine.close()
    assert prefill.finished
    return prefill, [prefill.part(number) for number in range(2)]


def test_a_prefix_goes_to_its_stages():
    """Its parts are longer than the stream's chunks: with 300 equal tokens, 256 are reused and not 288."""
    model = ts.load(mesh="stage=2")
    random = np.random.default_rng(0)
    one, two = (random.integers(4, 2000, 330).tolist() for _ in range(2))
    two = [*one[:300], *two[300:]]
    _, parts = filled(model, one)
    _, expected = filled(model, two)
    prefill, found = filled(model, two, Prefix(one, jax.tree.map(np.asarray, parts)))
    assert prefill.reused == BLOCK < 288
    for number, pair in enumerate(zip(expected, found, strict=True)):
        for ours, theirs in zip(*map(jax.tree.leaves, pair), strict=True):
            rows = len(two) - 1 - number * BLOCK
            np.testing.assert_array_equal(ours[:, :, :, :rows], theirs[:, :, :, :rows])


def test_a_stream_s_chunks_cost_the_same():
    config = tiny_config(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=64)
    stream = PromptStream.of(config, 4, 32, 32, range(0, 100_000), 100_096)
    sizes = np.diff(stream.ends, prepend=0)
    assert stream.chunks == 32
    assert sizes.sum() == len(stream.starts) == 3125
    assert sizes[0] > 4 * sizes[-1], "attention dominates, and grows with the position"
    assert max(stream.costs) < 1.02 * np.mean(stream.costs)
    assert stream.most == 1024
    assert stream.idle == pytest.approx(3 / 35, rel=0.06)
    assert stream.equal_idle == 3 / 35
    short = PromptStream.of(config, 2, 16, 32, range(10, 70), 64)
    assert (short.starts, short.ends) == ((10, 32), (1, 2)), "the last forward ends in the cache"


@pytest.mark.parametrize("chunks", [1, 2, 3, 6, 9])
def test_no_cut_is_much_better(chunks):
    """Against all cuts; the costs grow as those of forwards do."""
    costs = [7, 8, 9, 10, 11, 12]
    count = min(chunks, len(costs))
    ends = cut(costs, chunks)
    assert len(ends) == count
    assert ends[-1] == len(costs)

    def longest(inner):
        edges = [0, *inner, len(costs)]
        return max(sum(costs[begin:end]) for begin, end in itertools.pairwise(edges))

    best = min(longest(inner) for inner in itertools.combinations(range(1, len(costs)), count - 1))
    assert longest(ends[:-1]) <= best + max(costs) / 2


@pytest.mark.parametrize("stages", [2, 3])
def test_the_idle_share_is_that_of_the_ticks(stages):
    stream = PromptStream(stages, 1, tuple(range(5)), (1, 2, 3, 4, 5), (5, 4, 3, 4, 6))
    busy, time = 0, 0
    for tick in range(stream.ticks):
        costs = [stream.costs[tick - stage] if stream.forwards(tick - stage) else 0 for stage in range(stages)]
        busy, time = busy + sum(costs), time + max(costs)
    assert stream.idle == pytest.approx(1 - busy / (stages * time))
