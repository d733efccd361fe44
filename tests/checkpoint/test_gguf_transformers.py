"""A GGUF file has the logits that transformers computes from it (`gguf_file=`), by tests/make_gguf_fixtures.py.

tests/test_smollm2.py compares those of SmolLM2.
"""

import jax
import numpy as np
import pytest
from gguf_cases import CASES, case_of
from gguf_files import write_gguf
from stored_logits import FILE, kept

import tokenswift_jax as ts

STORED = np.load(FILE)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits(tmp_path, name, kind):
    config, tensors, ids = case_of(name)
    write_gguf(tmp_path / "model.gguf", config, tensors, kind)
    expected = STORED[f"{name} {kind}"]
    assert expected.std() > 0.5
    model = ts.load(tmp_path / "model.gguf", dtype="float32")
    np.testing.assert_allclose(kept(ts.score(model, [ids])[0]), expected, rtol=0, atol=1e-4)
