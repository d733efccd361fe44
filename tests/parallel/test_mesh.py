"""A mesh as a person writes it, the sizes of a model that it changes, and what is placed where."""

import dataclasses
import os
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import tokenswift_jax as ts
from tests.tiny import tiny_config
from tokenswift_jax.engine import capacity
from tokenswift_jax.errors import UserError
from tokenswift_jax.kv.dense import cache_bytes
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.parallel import device_memory, mesh_choice
from tokenswift_jax.parallel.fit import ZEROS, fit
from tokenswift_jax.parallel.mesh import make_mesh, notes_on
from tokenswift_jax.parallel.mesh_choice import chosen_mesh
from tokenswift_jax.parallel.mesh_spec import AutoMesh, MeshSpec, parse_mesh, prompt_chunks
from tokenswift_jax.parallel.report import mesh_table


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, MeshSpec()),
        ("1", MeshSpec()),
        ("1x1", MeshSpec()),
        ("4", MeshSpec(model=4)),
        (4, MeshSpec(model=4)),
        ("data=2,model=4", MeshSpec(2, 4)),
        ("context=4,model=2", MeshSpec(model=2, context=4)),
        ({"model": 2, "stage": 1}, MeshSpec(model=2)),
        ("stage=2,model=4", MeshSpec(model=4, stage=2)),
        ("auto", AutoMesh()),
    ],
)
def test_a_mesh_is_read(given, expected):
    assert parse_mesh(given) == expected
    if isinstance(expected, MeshSpec):
        assert parse_mesh(str(expected)) == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("2x2", "mesh 2x2: it must be data=2,model=4, or 4 for model=4, or auto"),
        ("data=2, model=2", "or auto, without spaces"),
        ("", "mesh : it must be"),
        (0, "mesh 0: it must be"),
        (True, "mesh True: it must be"),
        ("model=0", "mesh model=0: the size of model must be a whole number of at least 1"),
        ("0", "mesh 0: the size of model must be"),
        ("tensor=2", "mesh tensor=2: there is no axis tensor; axes: stage, data, context, model"),
        ("data=2,data=2", "the axis data appears twice"),
        ({"data": 1.5}, "the size of data must be a whole number"),
    ],
)
def test_a_mesh_that_is_none_is_refused_in_one_line(given, line):
    with pytest.raises(UserError) as error:
        parse_mesh(given)
    assert line in str(error.value)
    assert error.value.arguments == ("mesh",)


def test_a_prompt_s_chunks():
    assert [prompt_chunks(mesh, None) for mesh in (MeshSpec(), MeshSpec(model=2), AutoMesh())] == 3 * [None]
    assert [prompt_chunks(MeshSpec(stage=2), depth) for depth in (None, 4, 40)] == [16, 4, 40]


@pytest.mark.parametrize(
    ("mesh", "depth", "line"),
    [
        (
            MeshSpec(model=2),
            8,
            "pipeline_depth 8 has no use on the mesh model=2, which has no axis stage; leave it out",
        ),
        (MeshSpec(), 8, "pipeline_depth 8 has no use on the mesh 1"),
        (MeshSpec(stage=2), 3, "3 is too small for the 2 stages of the mesh stage=2; it must be at least 4, and 16 is"),
        (MeshSpec(stage=2), "x", "pipeline_depth is 'x'; it must be a whole number"),
    ],
)
def test_chunks_without_use_are_refused(mesh, depth, line):
    with pytest.raises(UserError) as error:
        prompt_chunks(mesh, depth)
    assert line in str(error.value)
    assert error.value.arguments == ("pipeline_depth",)


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        (
            MeshSpec(3, 4),
            "mesh data=3,model=4 needs 12 devices, and there are 8; data is too large: mesh data=2,model=4 fits",
        ),
        (MeshSpec(1, 16), "model is too large: mesh model=8 fits"),
        (MeshSpec(2, 16), "model is too large: mesh data=2,model=4 fits"),
        (MeshSpec(16, 16), "data and model are too large: mesh model=8 fits"),
        (
            MeshSpec(model=2, context=8),
            "mesh model=2,context=8 needs 16 devices, and there are 8; .*: mesh model=2,context=4 fits",
        ),
        (MeshSpec(data=16, context=16), "data and context are too large: mesh context=8 fits"),
        (MeshSpec(4, 4, 4), "data and context are too large: mesh model=4,context=2 fits"),
        (
            MeshSpec(data=4, stage=4),
            "mesh data=4,stage=4 needs 16 devices, and there are 8; data is too large: mesh data=2,stage=4 fits",
        ),
        (MeshSpec(stage=16), "stage is too large: mesh stage=8 fits"),
    ],
)
def test_too_few_devices(spec, remedy):
    with pytest.raises(UserError, match=f"{remedy}$"):
        make_mesh(spec)


def test_stages_that_fit_the_devices_fit_the_layers_too():
    for spec in (MeshSpec(stage=6), MeshSpec(stage=16)):
        with pytest.raises(
            UserError, match=f"mesh {spec} has more stages than the model has layers; mesh stage=4 fits"
        ):
            make_mesh(spec, layers=4)
    with pytest.raises(
        UserError, match="needs 12 devices, and there are 8; model is too large: mesh model=2,stage=4 fits"
    ):
        make_mesh(MeshSpec(model=3, stage=4), layers=4)


@pytest.mark.parametrize(
    ("spec", "own", "line"),
    [
        (MeshSpec(), (4, 4), "mesh 1 has 1 device, which 2 processes cannot share evenly; mesh model=8 fits"),
        (
            MeshSpec(data=3),
            (4, 4),
            "has 3 devices, which 2 processes cannot share evenly; data is too large: mesh data=2 f",
        ),
        (
            MeshSpec(model=2, stage=5),
            (4, 4),
            "and there are 8; stage is too large: mesh model=2,stage=4 fits",
        ),
        (
            MeshSpec(model=4),
            (1, 3),
            "and process 0 has 1; model is too large: mesh model=2 fits",
        ),
    ],
)
def test_a_mesh_that_processes_cannot_share(monkeypatch, spec, own, line):
    devices = [SimpleNamespace(process_index=process) for process, count in enumerate(own) for _ in range(count)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=line):
        make_mesh(spec)


def test_devices_left_over_are_named():
    mesh, names = make_mesh(MeshSpec(2, 2)), ", ".join(map(str, jax.devices()[4:]))
    assert notes_on(mesh, tiny_config())[-1] == f"mesh data=2,model=2 uses 4 of 8 devices; left over: {names}"
    assert notes_on(make_mesh(MeshSpec(2, 4)), tiny_config(num_key_value_heads=4)) == ()
    assert notes_on(None, tiny_config()) == ()


@pytest.mark.parametrize(
    ("kv_heads", "group", "devices", "expected"),
    [
        (2, 2, 4, [[0], [1], [2], [3]]),  # each KV head on two devices, with half of its queries
        (2, 7, 4, [[0, 1, 2, 3], [4, 5, 6, ZEROS], [7, 8, 9, 10], [11, 12, 13, ZEROS]]),
        (3, 1, 2, [[0], [1], [2], [ZEROS]]),
        (3, 3, 8, [[0, 1], [2, ZEROS], [3, 4], [5, ZEROS], [6, 7], [8, ZEROS], [ZEROS] * 2, [ZEROS] * 2]),
        (1, 2, 4, [[0], [1], [ZEROS], [ZEROS]]),
    ],
)
def test_heads_are_repeated_and_never_cut(kv_heads, group, devices, expected):
    config = tiny_config(num_attention_heads=kv_heads * group, num_key_value_heads=kv_heads)
    fitted = fit(config, devices)
    assert fitted.heads.reshape(-1, fitted.config.group_size).tolist() == expected
    assert fitted.config.num_kv_heads % devices == 0
    for own, kv_head in zip(expected, fitted.kv_heads, strict=True):
        assert all(head // group == kv_head for head in own if head != ZEROS)
    assert sorted(head for own in expected for head in own if head != ZEROS) == list(range(kv_heads * group))


def test_what_divides_stays_as_it_is():
    assert fit(tiny_config(), 2) is None
    assert fit(tiny_config(intermediate_size=50), 4).config.intermediate_size == 52
    assert fit(tiny_config(intermediate_size=50), 2, context=4).config.intermediate_size == 56


def test_a_vocabulary_that_does_not_divide_is_filled_up():
    fitted = fit(tiny_config(vocab_size=65), 4)
    assert (fitted.config.vocab_size, fitted.config.padded_vocab) == (65, 68)
    assert fitted.vocab.tolist() == [*range(65), *[ZEROS] * 3]
    assert fit(tiny_config(vocab_size=65), 2, context=4).config.padded_vocab == 72
    assert "the vocabulary of 65 tokens is filled up to 68 with zeros, which are never drawn" in fitted.notes
    decoder = Decoder(
        dataclasses.replace(fitted.config, num_layers=0, sliding_windows=()),
        dtype=jnp.dtype(jnp.float32),
        rngs=nnx.Rngs(0),
    )
    logits = decoder.project(jnp.ones((1, fitted.config.hidden_size), jnp.float32))
    assert logits.shape == (1, 68)
    assert np.isneginf(logits[0, 65:]).all()
    assert np.isfinite(logits[0, :65]).all()


def test_one_device_is_no_mesh_and_virtual_devices_gain_nothing():
    assert make_mesh(MeshSpec()) is None
    spec, (why,) = chosen_mesh(tiny_config(), 4, AutoMesh())
    assert (spec, why) == (MeshSpec(), "mesh auto: 1, since the 8 virtual devices share one CPU and its memory")


@pytest.mark.parametrize(
    ("kv_heads", "devices", "length", "expected"),
    [
        (8, 8, 1_000_000, MeshSpec(model=8)),  # every device has its own head: nothing is left for `context` to save
        (8, 16, 1_000_000, MeshSpec(model=8, context=2)),
        (2, 8, 65_536, MeshSpec(model=8)),  # a short cache is not worth its gathers
        (2, 8, 1_000_000, MeshSpec(model=2, context=4)),  # the heads first, then the length
        (1, 2, 1_000_000, MeshSpec(context=2)),
    ],
)
def test_auto_splits_the_length_of_long_texts_once_heads_run_out(monkeypatch, kv_heads, devices, length, expected):
    """A model of 8B parameters in bfloat16 on GPUs of 80 GB."""
    card = SimpleNamespace(platform="gpu", device_kind="H100", memory_stats=lambda: {"bytes_limit": 80 * 10**9})
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = tiny_config(num_key_value_heads=kv_heads, head_dim=128, vocab_size=128_256, **sizes)
    spec, (why,) = chosen_mesh(config, 2, AutoMesh(length=length))
    assert spec == expected
    assert f"{spec} of {devices} x H100, for 1 rows of {length} positions" in why


def test_auto_takes_stages_only_for_a_model_that_fits_no_other_mesh(monkeypatch):
    """One KV head, 8 devices: `model` stores the cache 8 times, `context` the weights of attention and the tables."""
    card = SimpleNamespace(platform="gpu", device_kind="H100", memory_stats=lambda: {"bytes_limit": memory})
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    sizes = {"hidden_size": 8192, "intermediate_size": 8192, "num_hidden_layers": 64, "num_attention_heads": 64}
    config = tiny_config(num_key_value_heads=1, head_dim=128, vocab_size=32_000, **sizes)
    found = {}
    for gigabytes in (20, 10.5, 1):
        memory = int(gigabytes * 1e9)
        found[gigabytes], _ = chosen_mesh(config, 2, AutoMesh(length=131_072))
    assert found[20].stage == 1
    assert found[10.5].stage > 1
    assert found[1].devices <= 8


def test_auto_counts_the_heads_of_zeros_and_those_stored_twice(monkeypatch):
    """Five KV heads on four devices: each stores two of eight, 0.4 of the cache and not a quarter of it."""
    cache = 2 * 2 * 2 * 5 * 128 * 2**20  # bytes: K and V, 2 layers, bfloat16
    card = SimpleNamespace(platform="gpu", device_kind="H100", memory_stats=lambda: {"bytes_limit": cache})
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    config = tiny_config(num_key_value_heads=5, num_attention_heads=5, head_dim=128)
    monkeypatch.setattr(mesh_choice, "_shapes", lambda *_: [MeshSpec(model=4)])
    _, (why,) = chosen_mesh(config, 2, AutoMesh(length=2**20))
    assert f"{0.4 * cache / 1e9:.1f} GB a device" in why


@pytest.mark.parametrize(("processes", "devices"), [(2, 8), (3, 6), (3, 5)])
def test_auto_takes_a_mesh_that_the_processes_can_share(monkeypatch, processes, devices):
    """One process alone would take one device, on which the tiny model is fastest."""
    card = SimpleNamespace(platform="gpu", device_kind="H100", memory_stats=lambda: {"bytes_limit": 80 * 10**9})
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert chosen_mesh(tiny_config(), 2, AutoMesh(length=1024))[0] == MeshSpec()
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    spec, _ = chosen_mesh(tiny_config(), 2, AutoMesh(length=1024))
    assert spec.devices % processes == 0
    card.platform = "cpu"
    spec, (why,) = chosen_mesh(tiny_config(), 2, AutoMesh(length=1024))
    assert spec == MeshSpec(model=processes)
    assert "a device of each process" in why


def test_devices_share_the_memory_of_a_cache(monkeypatch):
    """2^20 positions of 256 bytes need 67 MB on each of four devices, half of them 34 MB."""
    monkeypatch.setattr(device_memory, "available_bytes", lambda: 4 * 60_000_000)
    for mesh in (MeshSpec(context=4), MeshSpec(model=2, context=2), MeshSpec(model=2, stage=2)):
        with pytest.raises(UserError, match=r"on each of 4 devices.*; lower it"):
            capacity.check_memory(tiny_config(), 1, 2**20, jnp.float32, advice="lower it", mesh=make_mesh(mesh))
        capacity.check_memory(tiny_config(), 1, 2**19, jnp.float32, advice="lower it", mesh=make_mesh(mesh))


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Three processes with two devices each; two of them are on this machine."""
    devices = [SimpleNamespace(platform="cpu", process_index=process) for process in (0, 0, 1, 1, 2, 2)]
    monkeypatch.setattr(device_memory, "available_bytes", lambda: 4_000)
    monkeypatch.setattr(device_memory, "processes_here", lambda: frozenset({1, 2}))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert device_memory.least_free(devices) == (1_000, str(devices[2]))


@pytest.mark.parametrize(
    ("mesh", "rows", "parts"),
    [
        (MeshSpec(data=2, model=2), 4, 4),
        (MeshSpec(data=2, model=2), 3, 2),  # 3 rows are not cut in two
        (MeshSpec(model=4), 4, 1),  # nor 2 KV heads in four
        (MeshSpec(context=4), 4, 4),
        (MeshSpec(stage=2), 4, 2),
    ],
)
def test_the_part_of_a_cache_on_each_device_follows_the_rules(mesh, rows, parts):
    whole = cache_bytes(tiny_config(), rows, 1024, jnp.dtype(jnp.float32))
    found = device_memory.cache_bytes_on_each(make_mesh(mesh), tiny_config(), rows, 1024, jnp.dtype(jnp.float32))
    assert found == pytest.approx(whole // parts, abs=4 * tiny_config().num_layers)  # the numbers of layers, on a CPU


def test_too_little_memory_is_noticed_before_loading(monkeypatch):
    """The demo's 19 MB of weights on two devices, with 4 KB of cache a position; each has half of the memory."""

    def check(line, mesh="model=2", **more):
        with pytest.raises(UserError, match=line):
            ts.load(mesh=mesh, **more)

    def host(free):
        monkeypatch.setattr(device_memory, "available_bytes", lambda: free)

    host(8_000_000)
    check(
        r"mesh model=2 puts \S+ MB of weights on each device, and .* has 4.0 MB free: \S+ MB are missing; "
        "no mesh of these 8 devices has room$"
    )
    host(28_000_000)
    check(
        r"MB of weights and 8.4 MB of cache for 4096 positions on each .*: \S+ MB are missing; .* has room; ask for a "
        "shorter text",
        length=4096,
    )
    host(19_160_000)
    check(r"missing; mesh 1 has room$")  # two devices store the norms twice
    host(10_000_000)
    check(
        r"^the model has \S+ MB of weights, and .* has 10.0 MB free: \S+ MB are missing; no mesh of these 8", mesh=None
    )

    def card(free):  # devices with memory of their own
        monkeypatch.setattr(device_memory, "least_free", lambda devices: (free, str(devices[0])))

    card(8_000_000)
    check(r"1.6 MB are missing; mesh model=4 has room$")
    card(12_000_000)
    check(r"MB are missing; mesh model=2,context=2 has room$", length=4096)
    check(r"^the model has .* missing; mesh model=2 has room$", mesh=None)


def test_virtual_devices_get_their_threads_though_the_first_model_uses_one(monkeypatch):
    """JAX starts its threads when it looks for devices, which a mesh of a later model needs."""
    monkeypatch.delenv("NPROC")
    ts.load()
    assert int(os.environ["NPROC"]) >= 32


def test_a_loaded_model_is_split_by_whole_heads():
    model, alone = ts.load(mesh="model=4,context=2"), ts.load()
    assert dict(model.mesh.shape) == {"stage": 1, "data": 1, "context": 2, "model": 4}
    assert model.mesh_notes[0] == "mesh model=4,context=2: each of the 2 KV heads is stored on 2 devices"
    assert dataclasses.replace(model.config, num_kv_heads=2) == alone.config
    layer = model.params["layers"][0]["self_attn"]
    keys, whole = layer["k_proj"]["kernel"][...], alone.params["layers"][0]["self_attn"]["k_proj"]["kernel"][...]
    assert keys.sharding.spec == P(None, "model")
    heads = np.split(np.asarray(whole), 2, axis=1)
    for shard, head in zip(keys.addressable_shards, 2 * (0, 0, 1, 1), strict=True):
        np.testing.assert_array_equal(shard.data, heads[head])
    table = mesh_table(dict(model.mesh.shape), {"parameters": model.params})
    (line,) = [line for line in table.splitlines() if "self_attn.o_proj.kernel" in line]
    columns = [part.strip() for part in line.split("  ") if part.strip()]
    assert layer["o_proj"]["kernel"][...].sharding.spec == P("model")
    inner = model.params["layers"][0]["mlp"]
    assert model.params["embed_tokens"][...].sharding.spec == P(("model", "context"))
    assert inner["up_proj"]["kernel"][...].sharding.spec == P(None, ("model", "context"))
    assert inner["down_proj"]["kernel"][...].sharding.spec == P(("model", "context"))
    size = 4 * whole.shape[0] * 256 * 4 // 4  # four layers, float32, four devices
    assert columns == [
        "parameters.layers.*.self_attn.o_proj.kernel",
        "4",
        "256 x 256",
        "heads, embed",
        "model",
        f"{size:,}",
    ]
    stored = Counter()
    for leaf in jax.tree.leaves(model.params):
        stored.update({shard.device: shard.data.nbytes for shard in leaf.addressable_shards})
    assert {f"{size:,}" for size in stored.values()} == {table.split()[-1]}
