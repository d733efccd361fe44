"""Decoding split over eight devices writes what one device writes, and every array lies where the rules say."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from parallel_models import FEW, first_call, model_of

from tests.engine_fixture import part_of
from tokenswift_jax import parallel
from tokenswift_jax.kv.draft_positions import DraftCache
from tokenswift_jax.parallel.embedding import embed_lookup
from tokenswift_jax.parallel.island import island
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import CONTEXT, MODEL, MeshSpec
from tokenswift_jax.parallel.rules import island_spec, shardings
from tokenswift_jax.step.loop import run_chunk

DEVICES = 8


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(model=DEVICES))


@pytest.mark.parametrize(
    ("schedule", "join", "stack"),
    [("autoregressive", False, False), ("partial", False, False), ("partial", True, True)],
)
def test_eight_devices_write_the_text_of_one(mesh, schedule, join, stack):
    graph, plan, inputs, state = first_call(schedule, join, stack)
    run = jax.jit(lambda i, s: run_chunk(graph, plan, FEW, i, s, jnp.int32(FEW)))
    alone, chunk = run(inputs, state)
    with jax.set_mesh(mesh):
        split_state, split_chunk = run(*jax.device_put((inputs, state), shardings(mesh, (inputs, state))))
    assert np.asarray(chunk.counts).min() >= FEW - plan.depth - 1
    np.testing.assert_array_equal(split_chunk.emitted.records, chunk.emitted.records)
    length = int(alone.length[0])
    # The same products, summed in another order.
    np.testing.assert_allclose(
        np.asarray(split_state.cache.keys)[:, :, :, :length], alone.cache.keys[:, :, :, :length], atol=1e-4
    )
    kept = [split_state.cache.keys] + [part_of(split_state, DraftCache).cache.keys for _ in state.drafter]
    for keys in kept:
        assert keys.sharding.spec == P(None, None, MODEL, None, None), "every device keeps its own heads"


@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_no_device_sends_its_part_of_the_embeddings(mesh, shape):
    table = jax.random.normal(jax.random.key(0), (64, 32), jnp.bfloat16)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, 64)
    with jax.set_mesh(mesh):
        split = jax.device_put(table, NamedSharding(mesh, P(MODEL)))
        compiled = jax.jit(embed_lookup).lower(split, tokens).compile()
        np.testing.assert_array_equal(compiled(split, tokens), table[tokens])
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()


def test_a_gather_that_no_program_names_is_an_error(mesh):
    """The axes are `Explicit`: the type of every array says its split."""
    assert set(mesh.axis_types) == {AxisType.Explicit}
    halves = jax.device_put(jnp.zeros((8, 16)), NamedSharding(mesh, P(MODEL)))
    with jax.set_mesh(mesh):
        whole = island(jnp.negative, in_specs=(P(),), out_specs=P())
        with pytest.raises(ValueError, match="does not match the specs of the input"):
            jax.jit(whole).lower(halves)
        jax.jit(whole).lower(jax.reshard(halves, P()))


def test_weights_and_caches_are_split_and_the_rest_is_whole(mesh):
    _, _, inputs, state = first_call("partial")
    found = {
        jax.tree_util.keystr(path): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings(mesh, (inputs.params, state)))
    }
    found = {name.replace("']['", "."): spec for name, spec in found.items() if spec != P()}
    expected = {
        "q_proj.kernel": P(None, MODEL),
        "k_proj.kernel": P(None, MODEL),
        "v_proj.kernel": P(None, MODEL),
        "q_proj.bias": P(MODEL),
        "k_proj.bias": P(MODEL),
        "v_proj.bias": P(MODEL),
        "o_proj.kernel": P(MODEL),
        "gate_proj.kernel": P(None, MODEL),
        "up_proj.kernel": P(None, MODEL),
        "down_proj.kernel": P(MODEL),
        "lm_head.kernel": P(None, MODEL),
        "embed_tokens": P(MODEL),
        "linear.kernel": P(None, MODEL),
        "cache.keys": P(None, None, MODEL),
        "cache.values": P(None, None, MODEL),
        "query": P(None, None, MODEL),
        "].positions": P(None, None, MODEL),
        "last_positions": P(None, MODEL),
    }
    for name, spec in found.items():
        assert [wanted for part, wanted in expected.items() if part in name] == [spec], name
    for part in expected:
        assert any(part in name for name in found), part


def test_the_rules_alone_say_over_which_axes_an_array_is_split():
    """Training also stores parts along the data axis."""
    package, written = Path(parallel.__file__).parent.parent, re.compile(r"\bP\([^)\n]*\b(DATA|MODEL|CONTEXT|STAGE)\b")
    found = [path for path in package.rglob("*.py") if written.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(package).as_posix() for path in found] == ["training/shares.py"]


@pytest.mark.parametrize(
    ("names", "spec"),
    [
        ((), P()),
        (("vocab", "embed"), P((MODEL, CONTEXT), None)),
        ((None, None, "vocab"), P(None, None, (MODEL, CONTEXT))),
        (("layers", "batch", "kv_heads", "context"), P(None, None, MODEL, CONTEXT)),
        (("batch", "inner"), P(None, (MODEL, CONTEXT))),
    ],
)
def test_the_split_of_an_island_follows_the_names(names, spec):
    """The batch and the layers are split before."""
    assert island_spec(*names) == spec


@pytest.mark.parametrize("stack", [False, True])
def test_joined_weights_are_split_as_their_parts_are(mesh, stack):
    _, _, params = model_of(join=True, stack=stack)
    found = {
        ".".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path[-3:-1]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shardings(mesh, params))
    }
    specs = {name: sharding.spec for name, sharding in found.items()}
    groups = [None] if stack else []
    assert specs["qkv_proj.kernel"] == P(*groups, None, MODEL), "by KV head"
    assert specs["qkv_proj.bias"] == P(*groups, MODEL)
    assert specs["gate_up_proj.kernel"] == P(*groups, None, None, MODEL), "by inner column"
    assert specs["input_layernorm.scale"] == P()
    assert specs["lm_head.kernel"] == P(None, MODEL)
