"""A cache whose length four devices share, against the cache on one device: writes, attention, selection, copies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import tiny_config
from tokenswift_jax.arrays import take_row
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.kv.row_batch import Causal, RowBatch, TreeMask, TreeMaskOverBlocks
from tokenswift_jax.models.config import AttentionSpec
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.parallel.rules import shardings

CYCLIC = Cyclic(devices=4, block=16)
MESH = MeshSpec(model=2, context=4)
CONFIG = tiny_config(head_dim=16)
LENGTHS = np.asarray([201, 11, 64], np.int32)  # a row with all its positions on device 0, and one at the edge of a turn
ROWS, LAYER = 19, 1  # rows of several turns


def numbers(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def test_positions_take_turns_of_blocks():
    positions = np.arange(300)
    devices = positions // 16 % 4
    np.testing.assert_array_equal(CYCLIC.device(positions), devices)
    for device in range(4):
        own = positions[devices == device]
        np.testing.assert_array_equal(CYCLIC.slot(own), np.arange(len(own)))
        np.testing.assert_array_equal(CYCLIC.position(np.arange(len(own)), device), own)
        below = [np.sum(own < position) for position in positions]
        np.testing.assert_array_equal(CYCLIC.below(jnp.asarray(positions), device), below)
    for count in (1, 16, 17, 63, 64, 70, 150):
        most = max(np.sum(devices[at : at + count] == device) for device in range(4) for at in range(128))
        assert CYCLIC.most(count) == most
    assert [CYCLIC.slots(capacity) for capacity in (1, 1024, 1025)] == [256, 256, 512]


@pytest.fixture(scope="module", params=[None, "int8"])
def caches(request):
    """(on one device, on the mesh, the mesh): LENGTHS positions of random K/V, written in two pieces."""
    mesh, dtype = make_mesh(MESH), jnp.dtype(jnp.float32)
    alone, dealt = (
        full_cache(CONFIG, len(LENGTHS), capacity, dtype, request.param, cyclic)
        for capacity, cyclic in ((1024, None), (1000, CYCLIC))
    )
    dealt = jax.device_put(dealt, shardings(mesh, dealt))
    assert {shard.data.shape[2:5] for shard in dealt.keys.addressable_shards} == {(1, 1, 256)}
    heads = CONFIG.num_layers, len(LENGTHS), CONFIG.num_kv_heads
    first, second = (alone.stored(numbers(*heads, n, 16), numbers(*heads, n, 16)) for n in (190, ROWS))

    @jax.jit
    def filled(cache):
        cache = cache.append(0, first, jnp.asarray([0, 0, 0], jnp.int32))
        return cache.append(0, second, jnp.asarray(LENGTHS - ROWS // 2, jnp.int32))

    alone = filled(alone)
    with jax.set_mesh(mesh):
        return alone, filled(dealt), mesh


def both(caches, function):
    alone, dealt, mesh = caches
    expected = jax.jit(function)(alone)
    with jax.set_mesh(mesh):
        return jax.tree.leaves(expected), jax.tree.leaves(jax.jit(function)(dealt))


def test_writes_and_copies(caches):
    """`in_order` reads all slots, `gather` some; scratch past a row's second piece holds what the first piece left."""
    positions = np.random.default_rng(0).integers(0, 190, (len(LENGTHS), CONFIG.num_kv_heads, 33)).astype(np.int32)
    for function in (lambda c: c.in_order(190), lambda c: c.first(200).in_order(190), lambda c: c.gather(1, positions)):
        for expected, found in zip(*both(caches, function), strict=True):
            assert np.any(expected)
            np.testing.assert_array_equal(found, expected)


def test_a_part_of_a_text(caches):
    """Its positions come in text order, from all devices, and go into another cache at another place."""

    def moved(cache):
        part = cache.part(jnp.int32(0), jnp.int32(112))
        empty = take_row(jax.tree.map(jnp.zeros_like, cache), jnp.int32(0))
        return part, empty.append(0, part, jnp.asarray([300], jnp.int32)).in_order(600)

    for expected, found in zip(*both(caches, moved), strict=True):
        assert np.any(expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("visible", "window"), [("causal", None), ("tree", 30), ("blocks", None), ("blocks", 30)])
def test_attention(caches, visible, window):
    batch, group = len(LENGTHS), CONFIG.group_size
    queries = numbers(batch, ROWS, CONFIG.num_kv_heads * group, 16)
    own_keys, own_values = (numbers(1, batch, CONFIG.num_kv_heads, ROWS, 16) * scale for scale in (1.0, 2.0))
    mask = jnp.asarray(np.tril(np.random.default_rng(1).random((batch, ROWS, ROWS)) < 0.5) | np.eye(ROWS, dtype=bool))
    # Two of each row's blocks, one that names the newest; -1 for none.
    table = np.stack([np.full(batch, 1), (LENGTHS - 1) // 16, np.full(batch, -1)], axis=1)[None, :, None]
    table = jnp.asarray(np.broadcast_to(table, (CONFIG.num_layers, batch, CONFIG.num_kv_heads, 3)), jnp.int32)
    seen = {"causal": Causal(), "tree": TreeMask(mask), "blocks": TreeMaskOverBlocks(mask, table, 16)}[visible]
    positions = jnp.asarray(LENGTHS[:, None] + np.arange(ROWS)[None], jnp.int32)
    rows = RowBatch(jnp.zeros((batch, ROWS), jnp.int32), positions, jnp.asarray(LENGTHS), seen)

    def attend(cache):
        own = cache.stored(own_keys, own_values)
        return cache.attend(LAYER, queries, own, rows, AttentionSpec(0.25, window))

    (expected,), (found,) = both(caches, attend)
    assert len(np.unique(expected)) > 1000
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("block", "count"), [(1, 20), (1, 300), (16, 4)])
def test_a_selection_is_that_of_one_device(caches, block, count):
    """Also more positions than there are, and ties: keys of whole numbers."""
    query = jnp.round(numbers(len(LENGTHS), CONFIG.num_heads, 16))
    begins = jnp.asarray([3, 0, 17], jnp.int32)

    def select(cache):
        if cache.key_scales is None:
            cache = replace(cache, keys=jnp.round(cache.keys / 2))
        if block == 1:
            return cache.top_positions(LAYER, query, begins, jnp.asarray(LENGTHS), count)
        return cache.top_blocks(LAYER, query, begins, jnp.asarray(LENGTHS), count, block)

    (expected,), (found,) = both(caches, select)
    assert (np.asarray(expected) >= 0).any()
    np.testing.assert_array_equal(found, expected)
