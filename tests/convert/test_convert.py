"""convert.hf and convert.export: round trips to the byte, the reference's checkpoints, refusals that write nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from safetensors.numpy import load_file, save_file

from convert.export import export
from convert.hf import convert
from tests.checkpoint.checkpoints_made_here import FAMILIES, add_tokenizer, copy, heads, set_config
from tokenswift_jax.checkpoint import fingerprint, load_decoder, load_tokenizer, open_checkpoint
from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import MeshSpec

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"


def stored(folder):
    """Every tensor of a directory as (dtype, shape, bytes)."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: (str(v.dtype), v.shape, v.tobytes()) for name, v in tensors.items()}


# transformers gives a tokenizer of the family qwen2 another splitting rule, as it will when it loads the export.
@pytest.mark.filterwarnings("ignore:transformers .* splits text by other rules")
@pytest.mark.parametrize("name", ["llama2", "llama3_1", "llama_linear", "mistral", "qwen2_window", "qwen3"])
def test_round_trip_is_bit_identical(tmp_path, name):
    source, _ = copy(name, tmp_path / "source")
    add_tokenizer(source, 120)
    (source / "generation_config.json").write_text('{"temperature": 0.7}')
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    convert([str(source), str(tmp_path / "ours")])
    export([str(tmp_path / "ours"), str(tmp_path / "back")])
    assert stored(tmp_path / "ours") == stored(source) == stored(tmp_path / "back")
    config = json.loads((source / "config.json").read_text())
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: back[key] for key in config} == config
    assert set(back) - set(config) == {"architectures"}
    files = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    for file in [*files, "additional_chat_templates/tool_use.jinja"]:
        assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()
    text = "w7 w119"
    assert load_tokenizer(tmp_path / "back").encode(text) == load_tokenizer(source).encode(text)


def test_orbax_and_back(tmp_path):
    source, _ = copy("qwen2", tmp_path / "source")
    save_file(heads(32), source / "heads.safetensors")
    set_config(source, tokenswift={"num_heads": 2, "head_type": "chained"})
    convert([str(source), str(tmp_path / "plain"), "--dtype", "bfloat16"])
    convert([str(source), str(tmp_path / "orbax"), "--dtype", "bfloat16", "--orbax"])
    assert not list((tmp_path / "orbax").glob("*.safetensors"))
    convert([str(tmp_path / "orbax"), str(tmp_path / "back")])
    for file in ("model.safetensors", "heads.safetensors", "config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    # Straight from it onto a mesh: each device has its part of what the other layout gives it.
    mesh = make_mesh(MeshSpec(model=2))
    loaded = [load_decoder(tmp_path / name, mesh=mesh)[2] for name in ("plain", "orbax")]
    pairs = zip(*map(jax.tree.leaves, loaded), strict=True)
    assert all(a.sharding == b.sharding and (np.asarray(a) == np.asarray(b)).all() for a, b in pairs)
    assert fingerprint(tmp_path / "orbax") != fingerprint(tmp_path / "plain")
    # Beside other weights, a folder of that name is none of the checkpoint.
    shutil.copytree(tmp_path / "plain", tmp_path / "both")
    (tmp_path / "both" / "orbax").mkdir()
    assert open_checkpoint(tmp_path / "both").config == open_checkpoint(tmp_path / "plain").config
    data = max((tmp_path / "orbax" / "orbax").glob("**/d/*"), key=lambda file: file.stat().st_size)
    half = data.read_bytes()[: data.stat().st_size // 2]
    for damage in (lambda: data.write_bytes(half), data.unlink):
        damage()
        with pytest.raises(UserError, match=r"orbax is damaged or incomplete: \S+ cannot be read \("):
            load_decoder(tmp_path / "orbax")
    (tmp_path / "orbax" / "orbax" / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match="is not a readable orbax checkpoint"):
        open_checkpoint(tmp_path / "orbax")
    shutil.rmtree(tmp_path / "orbax" / "orbax")
    orbax.checkpoint.PyTreeCheckpointer().save(tmp_path / "orbax" / "orbax", {"params": [np.ones(2)], "name": "other"})
    with pytest.raises(UserError, match="is not a readable orbax checkpoint"):
        open_checkpoint(tmp_path / "orbax")


def test_orbax_on_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands for the full disk."""
    resource = pytest.importorskip("resource", reason="a system without limits on files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write \S+/new: File too large$"):
            convert([str(FAMILIES / "llama2"), str(tmp_path / "new"), "--orbax"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_sharded_source_with_buffers(tmp_path):
    source, tensors = copy("qwen2", tmp_path / "source")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file({name: tensors[name] for name in names[:9]}, source / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[9:]} | buffer, source / "model-00002-of-00002.safetensors")
    places = {name: f"model-0000{1 if name in names[:9] else 2}-of-00002.safetensors" for name in [*names, *buffer]}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    convert([str(source), str(tmp_path / "ours")])
    assert stored(tmp_path / "ours") == stored(FAMILIES / "qwen2")


def test_reference_layout_is_split_into_model_and_heads(tmp_path):
    source, tensors = copy("llama2", tmp_path / "source")
    save_file(tensors | heads(32, prefix="model.medusa_layers."), source / "model.safetensors")
    set_config(source, medusa_heads=2)
    convert([str(source), str(tmp_path / "ours")])
    ours = load_file(tmp_path / "ours" / "heads.safetensors")
    assert {n: v.tobytes() for n, v in ours.items()} == {n: v.tobytes() for n, v in heads(32).items()}
    assert sorted(load_file(tmp_path / "ours" / "model.safetensors")) == sorted(tensors)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["tokenswift"] == {"num_heads": 2, "head_type": "chained", "node_set": None}
    assert "medusa_heads" not in config


def test_base_is_folded_in(tmp_path):
    base, _ = copy("mistral", tmp_path / "base")
    add_tokenizer(base, 99)
    folder = tmp_path / "heads"
    folder.mkdir()
    block = {"num_heads": 2, "head_type": "chained", "node_set": {"fused": [[0], [1]]}, "base": "../base"}
    (folder / "config.json").write_text(json.dumps({"tokenswift": block}))
    save_file(heads(32), folder / "heads.safetensors")
    export([str(folder), str(tmp_path / "out")])
    assert stored(tmp_path / "out") == stored(base) | stored(folder)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tokenswift"] == {key: block[key] for key in ("num_heads", "head_type", "node_set")}
    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(folder).config
    assert len(load_tokenizer(tmp_path / "out")) == 99


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_cast(tmp_path, dtype):
    source, tensors = copy("llama3_1", tmp_path / "source")
    tensors = {name: (values.astype(np.float32) * np.float32(1.001)) for name, values in tensors.items()}
    save_file(tensors, source / "model.safetensors")
    set_config(source, torch_dtype="float32")
    convert([str(source), str(tmp_path / "ours"), "--dtype", dtype])
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    for name, values in tensors.items():
        np.testing.assert_array_equal(ours[name], values.astype(jnp.dtype(dtype)))
        assert ours[name].dtype == jnp.dtype(dtype)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("name", ["llama2_yarn", "llama3_1"])
def test_golden_reference_checkpoints(tmp_path, name):
    if not (GOLDEN / name / "model.safetensors").is_file():
        warnings.warn(f"{GOLDEN / name} is not there: the reference's checkpoint is NOT converted", stacklevel=1)
        pytest.skip("needs the golden checkpoints")
    convert([str(GOLDEN / name), str(tmp_path / "ours")])
    expected = {key.replace("model.medusa", "medusa"): value for key, value in stored(GOLDEN / name).items()}
    assert stored(tmp_path / "ours") == expected
    assert open_checkpoint(tmp_path / "ours").config == open_checkpoint(GOLDEN / name).config


def test_transformers_loads_what_is_exported(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoModelForCausalLM

    source, _ = copy("qwen3", tmp_path / "source")
    save_file(heads(32), source / "heads.safetensors")
    set_config(source, tokenswift={"num_heads": 2, "head_type": "chained"})
    export([str(source), str(tmp_path / "out")])
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float16, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    original = load_file(source / "model.safetensors")
    for name, values in model.state_dict().items():
        np.testing.assert_array_equal(values.numpy(), original[name])


def good(folder):
    pass


def no_config(folder):
    (folder / "config.json").unlink()


def unknown_family(folder):
    set_config(folder, model_type="gpt2")


def dynamic_rope(folder):
    set_config(folder, rope_scaling={"type": "dynamic", "factor": 2.0})


def missing_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-5])


def overflowing(folder):
    tensors = {name: v.astype(np.float32) for name, v in load_file(folder / "model.safetensors").items()}
    tensors["model.norm.weight"][0] = 1e9
    save_file(tensors, folder / "model.safetensors")


# (what is done to the source, command, arguments with {s} source, {t} a folder, what the one line must say)
REFUSED = {
    "no such source": (good, convert, ["{t}/nowhere", "{t}/new"], "no such directory"),
    "no config.json": (no_config, convert, ["{s}", "{t}/new"], "no config.json"),
    "unknown architecture": (unknown_family, convert, ["{s}", "{t}/new"], "llama, mistral, qwen2, qwen3"),
    "missing tensor": (missing_tensor, convert, ["{s}", "{t}/new"], "missing: model.norm.weight"),
    "truncated file": (truncated, convert, ["{s}", "{t}/new"], "not a readable safetensors file"),
    "dynamic RoPE": (dynamic_rope, convert, ["{s}", "{t}/new"], "another in config.json, or with rope_override where"),
    "cast overflows half-way": (overflowing, convert, ["{s}", "{t}/new", "--dtype", "float16"], "beyond the range"),
    "destination not empty": (good, convert, ["{s}", "{t}/full"], "exists already"),
    "destination is a file": (good, convert, ["{s}", "{t}/full/file"], "exists already"),
    "destination is the source": (good, convert, ["{s}", "{s}"], "exists already"),
    "no parent directory": (good, convert, ["{s}", "{t}/a/b"], "there is no directory"),
    "no destination": (good, convert, ["{s}"], "DST"),
    "unknown dtype": (good, convert, ["{s}", "{t}/new", "--dtype", "int8"], "int8"),
    "unknown flag": (good, convert, ["{s}", "{t}/new", "--fast"], "--fast"),
    "export of nothing": (good, export, ["{t}/nowhere", "{t}/new"], "no such directory"),
    "export onto something": (good, export, ["{s}", "{t}/full"], "exists already"),
    "export of a damaged one": (truncated, export, ["{s}", "{t}/new"], "not a readable safetensors file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_and_write_nothing(tmp_path, name):
    spoil, command, arguments, part = REFUSED[name]
    source, _ = copy("llama2", tmp_path / "source")
    spoil(source)
    target = tmp_path / "target"
    (target / "full").mkdir(parents=True)
    (target / "full" / "file").write_text("kept")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError) as caught:
        command([argument.format(s=source, t=target) for argument in arguments])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("module", ["convert.hf", "convert.export"])
def test_as_commands(tmp_path, module):
    def run(*arguments):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(FAMILIES / "llama2", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {tmp_path / 'out'}: 21 tensors")
    assert stored(tmp_path / "out") == stored(FAMILIES / "llama2")
    refused = run(FAMILIES / "llama2", tmp_path / "out")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"error: {tmp_path / 'out'} exists already; name a directory that is new or empty\n"


@pytest.mark.parametrize("command", [convert, export])
@pytest.mark.parametrize("named", [".", "link", "dangling"])
def test_a_destination_that_cannot_be_replaced_is_filled(tmp_path, monkeypatch, command, named):
    """A shell's folder, and links to an empty and to a new one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "dangling").symlink_to("new")
    monkeypatch.chdir(tmp_path / "out" if named == "." else tmp_path)
    here = os.stat(tmp_path / "out").st_ino
    command([str(FAMILIES / "llama2"), named])
    written = tmp_path / ("new" if named == "dangling" else "out")
    assert sorted(path.name for path in written.iterdir()) == ["config.json", "model.safetensors"]
    assert os.stat(tmp_path / "out").st_ino == here
    assert {path.name for path in tmp_path.iterdir()} - {"new"} == {"out", "link", "dangling"}
    assert (tmp_path / "dangling").is_symlink()


def test_an_empty_destination_stays_empty_after_a_refusal(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    rename = Path.rename

    def refused(path, target):
        if Path(target) == tmp_path / "out" / "config.json":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(UserError, match=r"cannot write .*out: Input/output error"):
        convert([str(FAMILIES / "llama2"), str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop is a loop of links; name a directory"):
        convert([str(FAMILIES / "llama2"), str(tmp_path / "loop")])


def test_an_empty_destination_and_a_hidden_draft(tmp_path):
    (tmp_path / "out").mkdir()
    convert([str(FAMILIES / "llama2"), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
