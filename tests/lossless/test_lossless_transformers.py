"""Plain greedy decoding is transformers' `generate`, token for token, on every family and on the demo model."""

import importlib.util
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from decoded import PLAIN, assert_same, decode

import tokenswift_jax as ts
from tokenswift_jax.sampling import SamplingConfig

FAMILIES = Path(__file__).parents[1] / "data" / "families"
NAMES = ("llama2", "llama3_1", "llama_linear", "yarn_llama2", "mistral", "qwen2", "qwen2_window", "qwen3")
GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(autouse=True)
def own_compilation_cache():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def reference(folder, ids, count):
    """The ids that transformers' generate adds to `ids`."""
    if importlib.util.find_spec("torch") is None:
        warnings.warn("torch is not installed: equality with transformers' generate is NOT tested here", stacklevel=1)
        pytest.skip("needs torch")
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    neutral = {"repetition_penalty": 1.0, "temperature": None, "min_p": None, "top_k": None, "top_p": None}
    with torch.no_grad():
        out = model.generate(
            torch.asarray([ids]),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=model.config.vocab_size - 1,  # with min_new_tokens: never drawn, as below
            pad_token_id=0,
            **neutral,
        )
    return out[0, len(ids) :].tolist()


def check(model, folder, ids, count):
    expected = reference(folder, ids, count)
    never = SamplingConfig(temperature=0.0, suppress_tokens=(model.config.vocab_size - 1,))
    actual = decode(model, ids, never, PLAIN, max_new_tokens=count, ignore_eos=True)
    assert len(set(expected)) > 8  # not one token over and over
    assert_same(actual.tokens, expected)


@pytest.mark.parametrize("name", NAMES)
def test_families(name):
    ids = np.load(FAMILIES / name / "expected.npz")["input_ids"][:30].tolist()
    check(ts.load(FAMILIES / name), FAMILIES / name, ids, 64)


def test_demo_model():
    model = ts.load(dtype="float32")
    ids = model.tokenizer("It was late in the autumn, and the road that led down to the village")["input_ids"]
    check(model, model.path, ids, 256)
