"""Scores that devices share by vocabulary: what is found among them is what one device finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tokenswift_jax.parallel import vocabulary
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import CONTEXT, MODEL, MeshSpec
from tokenswift_jax.sample.block_topk import BLOCKS, shortlist
from tokenswift_jax.sample.gumbel import gumbel_noise

DEVICES, VOCAB = 6, 6 * 1600


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(model=3, context=2))


def scores():
    found = np.random.default_rng(0).permutation(3 * VOCAB).reshape(3, 1, VOCAB).astype(np.float32)
    found[0, 0, : VOCAB // 2] = -np.inf
    return found


def on(mesh, function, *given):
    """The result for scores split over the devices, and the compiled program."""
    split = jax.device_put(scores(), NamedSharding(mesh, P(None, None, (MODEL, CONTEXT))))
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(split, *given).compile()
        return compiled(split, *given), compiled.as_text()


def test_scores_of_tokens(mesh):
    tokens = np.asarray([[0], [VOCAB - 1], [1600]], np.int32)
    found, program = on(mesh, vocabulary.scores_of, tokens)
    np.testing.assert_array_equal(found, np.take_along_axis(scores(), tokens[..., None], axis=-1)[..., 0])
    assert "all-gather" not in program


def test_scores_of_a_draft_vocabulary(mesh):
    ids = np.unique(np.random.default_rng(1).integers(0, VOCAB, 1300))[:1200].astype(np.int32)
    found, program = on(mesh, vocabulary.of_ids, ids)
    np.testing.assert_array_equal(found, scores()[..., ids])
    assert {shard.data.shape for shard in found.addressable_shards} == {(3, 1, 1200 // DEVICES)}
    assert "all-gather" not in program


def test_a_shortlist_contains_every_score_above_its_edge(mesh):
    found, program = on(mesh, shortlist)
    for row, few, edge, highest in zip(scores(), found.scores, found.guaranteed_above, found.highest, strict=True):
        above = np.sort(row[row > edge])
        np.testing.assert_array_equal(np.sort(np.asarray(few)[np.asarray(few) > edge]), above)
        assert len(above) >= BLOCKS - 1
        assert highest == row.max()
    assert f"f32[3,1,{VOCAB}]" not in program, "no device has all scores"


def test_each_device_makes_its_part_of_the_noise(mesh):
    keys, positions = jnp.asarray([[1, 2]], jnp.uint32), jnp.asarray([[7, 8]], jnp.int32)
    expected = gumbel_noise(keys, positions, VOCAB)
    found, program = on(mesh, lambda scores, keys, positions: gumbel_noise(keys, positions, VOCAB), keys, positions)
    np.testing.assert_array_equal(found, expected)
    assert {shard.data.shape for shard in found.addressable_shards} == {(1, 2, VOCAB // DEVICES)}
    assert f"[1,2,{VOCAB}]" not in program
