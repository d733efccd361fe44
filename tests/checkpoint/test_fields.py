"""Fields of config.json that are not known: refused by name, or ignored where they cannot change the text."""

import json
import re
import shutil

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import tokenswift_jax as ts
from tests.checkpoint.checkpoints_made_here import FAMILIES
from tokenswift_jax.models.hf_config import model_config

SIZES = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
LLAMA = {"model_type": "llama", "num_key_value_heads": 2, **SIZES}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparse_attention_config", {"block": 64}),
        ("attn_logit_softcapping", 50.0),
        ("residual_multiplier", 0.22),
        ("no_rope_layers", [0, 1]),
        ("use_rope", False),
        ("partial_rotary_factor", 0.5),
        ("query_pre_attn_scalar", 256),
        ("attention_chunk_size", 8192),
        ("add_cross_attention", True),
    ],
)
def test_what_may_change_the_text_is_refused_by_name(name, value):
    with pytest.raises(
        ts.UserError, match=rf"{name} {re.escape(repr(value))}; where the model computes the same"
    ) as reported:
        model_config(LLAMA | {name: value})
    assert "remove them" in str(reported.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparse_attention_config", {"0": {"0": ["vertical_and_slash", 1000, 6096, 1]}}),
        ("sparse_attention_enabled", True),
        ("sparse_attention_threshold", 32768),
    ],
)
def test_fields_inside_dual_chunk_attention_are_fields_too(name, value):
    """vLLM reads its sparse attention from there."""
    block = {"chunk_size": 128, "local_size": 16, "original_max_position_embeddings": 96}
    plain = model_config(LLAMA | {"dual_chunk_attention_config": block})
    with pytest.raises(
        ts.UserError, match=rf"dual_chunk_attention_config\.{name} .*; where the model computes the same"
    ):
        model_config(LLAMA | {"dual_chunk_attention_config": block | {name: value}})
    off = {"sparse_attention_enabled": False, "sparse_attention_config": {}, "sparse_attention_threshold": None}
    assert model_config(LLAMA | {"dual_chunk_attention_config": block | off}) == plain


def test_all_of_them_are_named():
    with pytest.raises(ts.UserError, match=r"alpha 1, beta \[2\];"):
        model_config(LLAMA | {"alpha": 1, "beta": [2]})


@pytest.mark.parametrize(
    "fields",
    [
        {"sparse_attention_config": None, "mtp_layers": [], "pruned_heads": {}},
        {"use_mrope": False, "rope_interleaved": False, "partial_rotary_factor": 1.0, "residual_multiplier": 1.0},
        {
            "pretraining_tp": 2,
            "unsloth_version": "2024.9",
            "transformers.js_config": {"dtype": "q4"},
            "id2label": {"0": "a"},
        },
        {"temperature": 0.6, "do_sample": True},
    ],
)
def test_what_cannot_change_the_text_is_ignored(fields):
    assert model_config(LLAMA | fields) == model_config(LLAMA)


@pytest.mark.parametrize("family", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_every_field_that_transformers_writes_is_known(family):
    model_config(family(**SIZES | {"hidden_size": 64, "num_key_value_heads": 2, "max_window_layers": 2}).to_dict())


@pytest.mark.parametrize(
    ("name", "value", "reported"),
    [
        ("tie_word_embeddings", "false", "it must be true or false"),
        ("attention_bias", 1, "it must be true or false"),
        ("rms_norm_eps", "1e-5", "it must be a positive number"),
        ("rms_norm_eps", [1e-5], "it must be a positive number"),
        ("dual_chunk_attention_config", {"local_size": 3}, "an object with a chunk_size"),
        ("layer_types", "full_attention", "it must be a list or null"),
    ],
)
def test_values_of_a_wrong_type_are_named(name, value, reported):
    with pytest.raises(ts.UserError, match=f"{name} in config.json is .*{reported}"):
        model_config(LLAMA | {name: value})


def test_settings_of_generate_in_config_json_count_without_generation_config_json(tmp_path):
    folder = shutil.copytree(FAMILIES / "llama2", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"do_sample": True, "temperature": 0.6, "top_k": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert ts.load(folder).generation_config == {"do_sample": True, "temperature": 0.6}
    (folder / "generation_config.json").write_text('{"top_p": 0.5}')
    assert ts.load(folder).generation_config == {"top_p": 0.5}


def test_a_byte_order_mark_before_json_is_no_part_of_it(tmp_path):
    folder = shutil.copytree(FAMILIES / "llama2", tmp_path / "m")
    file = folder / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert ts.load(folder).config == ts.load(FAMILIES / "llama2").config
