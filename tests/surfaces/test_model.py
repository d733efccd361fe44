"""Loading: the bundled demo, EOS ids, the compilation cache."""

import json
import shutil
from pathlib import Path

import jax
import pytest

import tokenswift_jax as ts
from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax import model as model_module
from tokenswift_jax.checkpoint.converted import source_name
from tokenswift_jax.errors import TextWarning, UserError
from tokenswift_jax.model import DEMO_MODEL, use_compilation_cache
from tokenswift_jax.training.trainer import default_cache


@pytest.fixture(autouse=True)
def cache_home(monkeypatch, tmp_path):
    """Keeps the compilation cache out of the home folder, and the setting out of the other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    before = (jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "caches" / "tokenswift_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_the_bundled_demo():
    model = ts.load()
    assert model.path == DEMO_MODEL
    assert model.dtype == "float32"
    assert len(model.tokenizer) == model.config.vocab_size
    assert model.tokenizer.eos_token_id in model.eos_token_ids
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {"float32"}


def test_a_model_encodes_as_generate_does_and_gives_the_checkpoint_s_sampling():
    model = ts.load()
    ids = model.encode("It was late")
    assert ids == model.tokenizer("It was late")["input_ids"]
    assert model.encode(["It was late", ids]) == [ids, ids]
    out = ts.generate(model, "It was late", model.sampling_config(seed=5), max_new_tokens=3)
    assert (out.prompt_tokens, out.seed) == (len(ids), 5)
    assert out.records is not None
    assert out.records.token_ids.tolist() == out.token_ids
    assert out.records.offsets.tolist()[0] == -1
    own = {name: value for name, value in model.generation_config.items() if name in ("temperature", "top_p")}
    assert own.items() <= vars(model.sampling_config()).items()
    assert model.sampling_config(temperature=0.25).temperature == 0.25
    with pytest.raises(UserError, match="empty"):
        model.encode("")
    with pytest.raises(UserError, match="chat template"):
        model.encode(messages=[{"role": "user", "content": "x"}])
    assert len(model.fingerprint) == 64
    assert model.fingerprint == ts.load().fingerprint


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 3}, (7, 8)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({}, {"eos_token_id": 3}, (3,)),
        ({"eos_token_id": None}, {"eos_token_id": [3]}, (3,)),
        ({}, {}, ()),
    ],
)
def test_eos_ids_of_the_generation_config_come_first(tmp_path, generation, config, ids):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    assert model_module._eos_token_ids(tmp_path, generation, 10) == ids


@pytest.mark.parametrize(("found", "kept"), [(10, ()), (-1, ()), ([7, 10, 8], (7, 8))])
def test_an_eos_id_outside_the_vocabulary_is_named_and_left_out(tmp_path, found, kept):
    """No text contains it, so it can do no harm: only an id that occurs is an error."""
    with pytest.warns(TextWarning, match=r"eos_token_id of .* outside the vocabulary of 0\.\.9, .*: (10|-1)$"):
        assert model_module._eos_token_ids(tmp_path, {"eos_token_id": found}, 10) == kept


@pytest.mark.parametrize("wrong", ["</s>", [1, None], True, 1.5])
def test_an_eos_id_that_is_no_id(tmp_path, wrong):
    with pytest.raises(ts.UserError, match="eos_token_id is "):
        model_module._eos_token_ids(tmp_path, {"eos_token_id": wrong}, 10)


def test_what_a_checkpoint_cannot_use_of_its_settings_is_named_and_left_out(tmp_path):
    folder = shutil.copytree(FAMILIES / "llama2", tmp_path / "m")
    settings = {"suppress_tokens": [3, -1, 10**6], "stop_strings": ["x"], "top_p": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with pytest.warns(TextWarning) as warned:
        assert ts.load(folder).generation_config == {"suppress_tokens": [3], "top_p": 0.5}
    texts = sorted(str(one.message) for one in warned)
    assert texts[0].startswith("stop_strings of generation_config.json have no effect")
    assert texts[1].startswith("suppress_tokens of generation_config.json has ids outside the vocabulary")
    assert texts[1].endswith(": -1, 1000000")


def test_compiled_programs_are_kept_under_the_cache_home(cache_home):
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(cache_home)
    assert cache_home.is_dir()


def test_the_user_s_own_place_is_left_alone(cache_home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    assert not cache_home.exists()


def test_without_a_writable_place_it_does_without(cache_home):
    cache_home.parent.parent.write_text("a file where the folder would be")
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_without_a_home_nothing_is_cached_and_no_folder_named_tilde_appears(monkeypatch, tmp_path):
    """As in a container whose user has no entry: neither HOME nor XDG_CACHE_HOME says where a cache may be."""

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert source_name(tmp_path) is None
    with pytest.raises(UserError, match="there is no home; set XDG_CACHE_HOME"):
        default_cache()
    assert not list(tmp_path.iterdir())
