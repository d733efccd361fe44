"""Loading: the right values at the right paths in the right dtype, and every way a checkpoint can be wrong."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints_made_here import FAMILIES, copy, heads, set_config
from flax import nnx
from safetensors.numpy import load_file, save_file

from tokenswift_jax.checkpoint import load_decoder, open_checkpoint
from tokenswift_jax.errors import UserError


def flat(folder, **options):
    return {path: param[...] for path, param in nnx.to_flat_state(load_decoder(folder, **options)[2])}


def test_values_and_transposition():
    tensors, params = load_file(FAMILIES / "qwen3" / "model.safetensors"), flat(FAMILIES / "qwen3")
    kernel = params[("layers", 1, "self_attn", "q_proj", "kernel")]
    assert kernel.shape == (32, 96)
    np.testing.assert_array_equal(kernel, tensors["model.layers.1.self_attn.q_proj.weight"].T.astype(np.float32))
    np.testing.assert_array_equal(params[("embed_tokens",)], tensors["model.embed_tokens.weight"].astype(np.float32))
    scale = params[("layers", 0, "self_attn", "k_norm", "scale")]
    np.testing.assert_array_equal(scale, tensors["model.layers.0.self_attn.k_norm.weight"].astype(np.float32))
    assert len(params) == len(tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", jnp.bfloat16])
def test_dtype_asked_for(dtype):
    params = flat(FAMILIES / "llama2", dtype=dtype)
    assert {values.dtype for values in params.values()} == {jnp.dtype(dtype)}
    stored = load_file(FAMILIES / "llama2" / "model.safetensors")["model.norm.weight"]
    np.testing.assert_array_equal(params[("norm", "scale")], stored.astype(jnp.dtype(dtype)))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_own_dtype_is_at_least_float32_on_cpu(tmp_path, stored):
    folder, tensors = copy("llama2", tmp_path / "model")
    save_file({name: values.astype(stored) for name, values in tensors.items()}, folder / "model.safetensors")
    with jax.enable_x64(stored is np.float64):
        params = flat(folder)
    wide = np.float64 if stored is np.float64 else np.float32
    assert {values.dtype for values in params.values()} == {np.dtype(wide)}
    expected = tensors["lm_head.weight"].astype(stored).astype(wide)
    np.testing.assert_array_equal(params[("lm_head", "kernel")], expected.T)


def test_shards_are_read_straight_to_their_devices():
    mesh = jax.make_mesh((4,), ("model",), devices=jax.devices()[:4])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = flat(FAMILIES / "llama2", sharding=lambda path, _: split if path[-1] == "kernel" else whole)
    for path, expected in flat(FAMILIES / "llama2").items():
        np.testing.assert_array_equal(params[path], expected)
    kernel = params[("layers", 0, "mlp", "down_proj", "kernel")]
    assert kernel.sharding == split
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(64, 8)}


@pytest.mark.parametrize("place", ["", "parts/"])
def test_sharded_files_load_like_one_file(tmp_path, place):
    folder, tensors = copy("qwen2", tmp_path / "model")
    (folder / place).mkdir(exist_ok=True)
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number in range(3):
        file = f"{place}model-{number + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, folder / file)
        places |= dict.fromkeys(names[number::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    expected = flat(FAMILIES / "qwen2")
    actual = flat(folder)
    assert set(actual) == set(expected)
    assert all(np.array_equal(actual[path], expected[path]) for path in expected)


@pytest.mark.parametrize("where", ["own file", "in the model", "in the model, unprefixed", "in the base as well"])
def test_draft_heads_wherever_they_are(tmp_path, where):
    folder, tensors = copy("llama3_1", tmp_path / "model")
    expected = heads(32)
    if where == "in the model":
        save_file(tensors | heads(32, prefix="model.medusa_layers."), folder / "model.safetensors")
        set_config(folder, medusa_heads=2)
    elif where == "in the model, unprefixed":
        save_file(tensors | expected, folder / "model.safetensors")
        set_config(folder, medusa_heads=2)
    else:
        set_config(folder, tokenswift={"num_heads": 2, "head_type": "chained"})
        if where == "in the base as well":  # another number of heads, which must not be mixed in
            others = heads(32, count=3, prefix="model.medusa_layers.")
            save_file(
                tensors | {name: values + np.float16(1) for name, values in others.items()},
                folder / "model.safetensors",
            )
        save_file(expected, folder / "heads.safetensors")
    params = flat(folder)
    for head in range(2):
        kernel = params[("draft_heads", "heads", head, "linear", "kernel")]
        np.testing.assert_array_equal(kernel, expected[f"medusa_layers.{head}.linear.weight"].T.astype(np.float32))
        scale = params[("draft_heads", "heads", head, "post_layernorm", "scale")]
        np.testing.assert_array_equal(scale, expected[f"medusa_layers.{head}.post_layernorm.weight"].astype(np.float32))


@pytest.mark.parametrize("whole_config", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_base_names_another_directory(tmp_path, whole_config, relative):
    base, _ = copy("qwen2", tmp_path / "base")
    folder = tmp_path / "heads"
    folder.mkdir()
    block = {"num_heads": 2, "head_type": "chained", "node_set": None, "base": "../base" if relative else str(base)}
    config = json.loads((base / "config.json").read_text()) if whole_config else {}
    (folder / "config.json").write_text(json.dumps(config | {"tokenswift": block}))
    save_file(heads(32), folder / "heads.safetensors")
    params = flat(folder)
    expected = flat(base)
    assert all(np.array_equal(params[path], expected[path]) for path in expected)
    assert len(params) == len(expected) + 6


def test_tied_checkpoint_may_repeat_its_embedding(tmp_path):
    folder, tensors = copy("llama3_1", tmp_path / "model")
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table}, folder / "model.safetensors")
    params = flat(folder)
    np.testing.assert_array_equal(params[("lm_head", "kernel")], params[("embed_tokens",)].T)  # untied on CPU
    save_file(tensors | {"lm_head.weight": table + np.float16(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="ties its embeddings"):
        open_checkpoint(folder)


def test_rotary_buffers_are_passed_over(tmp_path):
    folder, tensors = copy("llama2", tmp_path / "model")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file(tensors | buffer, folder / "model.safetensors")
    assert len(flat(folder)) == len(tensors)


def test_rope_override_reaches_the_configuration():
    config, _, _ = load_decoder(FAMILIES / "qwen2", rope_override={"rope_type": "yarn", "factor": 4.0})
    assert (config.rope.type, config.rope.factor, config.max_position_embeddings) == ("yarn", 4.0, 2048)


def test_host_memory_stays_near_one_tensor(tmp_path):
    folder, _ = copy("llama2", tmp_path / "model")
    rng, size, inner = np.random.default_rng(0), 256, 4096
    set_config(folder, hidden_size=size, intermediate_size=inner, num_hidden_layers=4)
    shapes = {"model.embed_tokens.weight": (128, size), "lm_head.weight": (128, size), "model.norm.weight": (size,)}
    for layer in range(4):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{part}_proj.weight": (size, size) for part in "qkvo"}
        shapes |= {f"{name}mlp.{part}_proj.weight": (inner, size) for part in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (size, inner)}
        shapes |= {f"{name}{part}_layernorm.weight": (size,) for part in ("input", "post_attention")}
    tensors = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    total, largest = sum(t.nbytes for t in tensors.values()), inner * size * 2
    assert total > 12 * largest
    del tensors
    load_decoder(folder)  # imports and compilations are not what is measured
    tracemalloc.start()
    loaded = load_decoder(folder, dtype="bfloat16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(nnx.to_flat_state(loaded[2])) == len(shapes)
    assert peak < 4 * largest  # as stored, cast, and the check of its values; parameters are the device's memory
