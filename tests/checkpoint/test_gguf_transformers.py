"""A GGUF file has the logits that transformers computes from it (`gguf_file=`)."""

import importlib.util
import warnings

import jax
import numpy as np
import pytest
from gguf_files import K_QUANTS, random_model, write_gguf

import tokenswift_jax as ts

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_QUANTS]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def of_transformers(file, ids):
    missing = [name for name in ("torch", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        warnings.warn(f"no {missing[0]}: equality with transformers' GGUF is NOT tested here", stacklevel=1)
        pytest.skip(f"needs {' and '.join(missing)}")
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.asarray([ids])).logits[0].numpy()


# Mistral's models are Llama files; transformers reads no head_dim from Qwen3's and takes 128.
MODELS = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "rope_theta": 1e6},
    "tied": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen3": {"model_type": "qwen3", "head_dim": 128, "rope_theta": 1e6},
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in MODELS for kind in ("F32", "Q4_1")), *(("llama", k) for k in KINDS[1:])],
)
def test_logits(tmp_path, name, kind):
    config, tensors = random_model(**MODELS[name])
    write_gguf(tmp_path / "model.gguf", config, tensors, kind)
    ids = np.random.default_rng(3).integers(0, config["vocab_size"], 60).tolist()
    expected = of_transformers(tmp_path / "model.gguf", ids)
    assert expected.std() > 0.5
    model = ts.load(tmp_path / "model.gguf", dtype="float32")
    np.testing.assert_allclose(ts.score(model, [ids])[0], expected, rtol=0, atol=1e-4)
