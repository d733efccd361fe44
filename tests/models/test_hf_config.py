"""config.json in every spelling to ModelConfig and RopeConfig."""

import math
from dataclasses import replace

import pytest

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import RopeConfig
from tokenswift_jax.models.hf_config import model_config, rope_override

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
LLAMA = {"model_type": "llama"} | SIZES
MISTRAL = {"model_type": "mistral"} | SIZES
QWEN2 = {"model_type": "qwen2"} | SIZES
QWEN3 = {"model_type": "qwen3"} | SIZES
LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}


def rope(kind, theta, **fields):
    unused = dict.fromkeys(
        ("factor", "original_max_position", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
    )
    return RopeConfig(**{**unused, "attention_factor": None, "truncate": None, **fields}, type=kind, theta=theta)


YARN_4 = {"rope_type": "yarn", "factor": 4.0}
SCALED_4 = {"attention_factor": 0.1 * math.log(4.0) + 1.0}
YARN = {"original_max_position": 4096, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
DEFAULT = rope("default", 10000.0)
LINEAR = {"rope_type": "linear", "factor": 2.0}
NULL_FACTOR = {"rope_type": "yarn", "factor": None}
# config.json's RoPE fields beside max_position_embeddings 16384 -> what they mean
ROPE = [
    ({}, DEFAULT),
    ({"rope_scaling": None, "rope_theta": 5e5}, rope("default", 5e5)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, rope("default", 1e6)),
    ({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, rope("default", 1e6)),
    (
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0},
            }
        },
        rope("linear", 10000.0, factor=2.0),
    ),
    ({"rope_parameters": {"full_attention": LINEAR, "sliding_attention": None}}, rope("linear", 10000.0, factor=2.0)),
    (  # transformers reads a null truncate as false, and 0 in these fields as their absence
        {"rope_scaling": YARN_4 | {"truncate": None}},
        rope("yarn", 10000.0, factor=4.0, **(YARN | {"original_max_position": 16384, "truncate": False}), **SCALED_4),
    ),
    (
        {"rope_scaling": YARN_4 | {"mscale": 1.0, "mscale_all_dim": 0, "beta_fast": 0, "beta_slow": 0.0}},
        rope("yarn", 10000.0, factor=4.0, **(YARN | {"original_max_position": 16384}), **SCALED_4),
    ),
    ({"rope_scaling": {"type": "linear", "factor": 4}}, rope("linear", 10000.0, factor=4.0)),
    ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 4}}, rope("linear", 10000.0, factor=4.0)),
    (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"} | LLAMA3},
        rope("llama3", 5e5, factor=8.0, original_max_position=8192, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    (
        {
            "rope_scaling": {
                "type": "yarn",
                "rope_type": "yarn",
                "factor": 4,
                "finetuned": True,
                "original_max_position_embeddings": 4096,
            }
        },
        rope("yarn", 10000.0, factor=4.0, attention_factor=0.1 * math.log(4) + 1, **YARN),
    ),
    (  # transformers 5 puts the original length beside the parameters for some families
        {"original_max_position_embeddings": 4096, "rope_parameters": {"rope_type": "yarn", "factor": 4}},
        rope("yarn", 10000.0, factor=4.0, attention_factor=0.1 * math.log(4) + 1, **YARN),
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4, "truncate": False, "beta_fast": 16, "beta_slow": 2}},
        rope(
            "yarn",
            10000.0,
            factor=4.0,
            attention_factor=0.1 * math.log(4) + 1,
            original_max_position=16384,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
        ),
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4096}},
        rope("yarn", 10000.0, factor=4.0, attention_factor=0.1 * math.log(4) + 1, **YARN),
    ),
    (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "mscale": 1.0,
                "mscale_all_dim": 0.707,
            }
        },
        rope(
            "yarn",
            10000.0,
            factor=40.0,
            attention_factor=(0.1 * math.log(40) + 1) / (0.0707 * math.log(40) + 1),
            **YARN,
        ),
    ),
    (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 4096,
                "attention_factor": 1.5,
                "mscale": 1.0,
                "mscale_all_dim": 0.707,
            }
        },
        rope("yarn", 10000.0, factor=4.0, attention_factor=1.5, **YARN),
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 4096}},
        rope("yarn", 10000.0, factor=0.5, attention_factor=1.0, **YARN),
    ),
]


@pytest.mark.parametrize(("fields", "expected"), ROPE)
def test_rope(fields, expected):
    actual = model_config(LLAMA | {"max_position_embeddings": 16384} | fields).rope
    if expected.attention_factor is not None:
        assert actual.attention_factor == pytest.approx(expected.attention_factor, rel=1e-15)
        actual = replace(actual, attention_factor=expected.attention_factor)
    assert actual == expected


FULL = (None,) * 4
FIELDS = [
    # what config.json leaves out is what the family's class in transformers assumes
    (
        LLAMA,
        {
            "num_layers": 4,
            "num_heads": 8,
            "num_kv_heads": 2,
            "head_dim": 8,
            "group_size": 4,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "qkv_bias": False,
            "output_bias": False,
            "mlp_bias": False,
            "qk_norm": False,
            "sliding_windows": FULL,
            "num_draft_heads": 0,
        },
    ),
    (LLAMA | {"num_key_value_heads": None}, {"num_kv_heads": 8}),
    ({k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, {"num_kv_heads": 8}),
    (LLAMA | {"attention_bias": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": False}),
    (LLAMA | {"mlp_bias": True}, {"qkv_bias": False, "output_bias": False, "mlp_bias": True}),
    (LLAMA | {"head_dim": None}, {"head_dim": 8}),
    (LLAMA | {"head_dim": 32, "tie_word_embeddings": True}, {"head_dim": 32, "tie_word_embeddings": True}),
    (LLAMA | {"rms_norm_eps": 1e-5, "medusa_heads": 3}, {"rms_norm_eps": 1e-5, "num_draft_heads": 3}),
    (LLAMA | {"medusa_heads": 3, "tokenswift": {"num_heads": 2, "head_type": "chained"}}, {"num_draft_heads": 2}),
    (MISTRAL, {"sliding_windows": (4096,) * 4, "max_position_embeddings": 131072, "qkv_bias": False}),
    (MISTRAL | {"sliding_window": None, "head_dim": 16}, {"sliding_windows": FULL, "head_dim": 16}),
    (MISTRAL | {"sliding_window": 7}, {"sliding_windows": (7,) * 4}),
    (QWEN2, {"qkv_bias": True, "output_bias": False, "qk_norm": False, "sliding_windows": FULL}),
    (QWEN2 | {"sliding_window": 9, "max_window_layers": 2}, {"sliding_windows": FULL}),
    (
        QWEN2 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
        {"sliding_windows": (None, None, 9, 9), "max_position_embeddings": 32768},
    ),
    (QWEN2 | {"use_sliding_window": True}, {"sliding_windows": FULL}),  # 28 full layers by default
    (QWEN2 | {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, {"sliding_windows": FULL}),
    (
        QWEN3
        | {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        },
        {"sliding_windows": (9, None, None, 9)},
    ),
    (QWEN3, {"head_dim": 128, "qk_norm": True, "qkv_bias": False, "output_bias": False}),
    (QWEN3 | {"attention_bias": True, "head_dim": 24}, {"head_dim": 24, "qkv_bias": True, "output_bias": True}),
]


@pytest.mark.parametrize(("config", "expected"), FIELDS)
def test_fields(config, expected):
    actual = model_config(config)
    assert {name: getattr(actual, name) for name in expected} == expected


YARN_TYPE = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}


def test_swish_is_silu():
    assert model_config(LLAMA | {"hidden_act": "swish"}) == model_config(LLAMA | {"hidden_act": "silu"})


ERRORS = [
    ({"model_type": "gpt2"} | SIZES, ["'gpt2'", "llama, mistral, qwen2, qwen3"]),
    (SIZES, ["model_type None"]),
    ({"model_type": "llama", "vocab_size": 3}, ["hidden_size, intermediate_size, num_hidden_layers"]),
    (LLAMA | {"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "silu"]),
    (LLAMA | {"quantization_config": {"quant_method": "awq"}}, ["quantization_config"]),
    (LLAMA | {"vocab_size": "100"}, ["vocab_size", "'100'"]),
    (LLAMA | {"num_hidden_layers": 0}, ["num_hidden_layers", "positive"]),
    (LLAMA | {"num_hidden_layers": 10**9}, ["num_hidden_layers in config.json is 1000000000", "10,000"]),
    (LLAMA | {"num_key_value_heads": 0}, ["num_key_value_heads in config.json is 0", "positive integer"]),
    (LLAMA | {"num_key_value_heads": False}, ["num_key_value_heads in config.json is False"]),
    (LLAMA | {"head_dim": 0}, ["head_dim in config.json is 0", "positive integer"]),
    (LLAMA | {"num_key_value_heads": 3}, ["not a multiple of num_key_value_heads 3"]),
    (LLAMA | {"hidden_size": 63}, ["hidden_size 63", "head_dim"]),
    (LLAMA | {"head_dim": 7}, ["head_dim is 7", "even"]),
    (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["'dynamic'", "chunked", "rope_override"]),
    (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, ["'longrope'", "default, linear, llama3, yarn"]),
    (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, ["'linear' needs factor"]),
    (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor, high_freq_factor"]),
    (LLAMA | {"rope_scaling": {"rope_type": "llama3"} | LLAMA3 | {"high_freq_factor": 1}}, ["greater than"]),
    (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, ["factor is '4'", "positive number"]),
    (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": -1.0}}, ["factor is -1.0"]),
    (LLAMA | {"rope_theta": math.nan}, ["rope_theta is nan"]),
    (LLAMA | {"rope_theta": 10**400}, ["rope_theta is 1000", "too large"]),
    (LLAMA | {"rope_scaling": LINEAR | {"factor": 10**400}}, ["factor is 1000", "too large"]),
    (LLAMA | {"rms_norm_eps": 10**400}, ["rms_norm_eps in config.json is 1000", "too large"]),
    (LLAMA | {"rms_norm_eps": 1e300}, ["rms_norm_eps in config.json is 1e+300", "too large for a float32"]),
    (LLAMA | {"rope_theta": 1e300}, ["rope_theta is 1e+300", "too large for a float32"]),
    (LLAMA | {"rope_scaling": YARN_4 | {"beta_fast": 1e308}}, ["beta_fast is 1e+308", "too large"]),
    (LLAMA | {"rope_scaling": YARN_4 | {"beta_slow": 1e-320}}, ["beta_slow is 1e-320", "too small"]),
    (LLAMA | {"rope_theta": 1.0, "rope_scaling": YARN_4}, ["rope_theta is 1;", "above 1"]),
    (LLAMA | {"rope_scaling": NULL_FACTOR | {"original_max_position_embeddings": "64"}}, ["is '64'; it must be"]),
    (LLAMA | {"rope_scaling": NULL_FACTOR | {"original_max_position_embeddings": 0}}, ["is 0; it must be"]),
    (LLAMA | {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, ["RoPE type 'longrope'"]),
    (LLAMA | {"rope_parameters": {"sliding_attention": LINEAR, "full_attention": None}}, ["differ by layer type"]),
    (LLAMA | {"rope_theta": 0}, ["rope_theta is 0"]),
    (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}, "original_max_position_embeddings": "64"},
        ["is '64'"],
    ),
    (LLAMA | {"rope_scaling": LINEAR | {"original_max_position_embeddings": 0}}, ["is 0; it must be a positive"]),
    (
        LLAMA | {"rope_scaling": LINEAR | {"original_max_position_embeddings": 64.5}},
        ["64.5; it must be a whole number"],
    ),
    (LLAMA | {"rope_scaling": LINEAR | {"truncate": "no"}}, ["truncate is 'no'; it must be true or false"]),
    (LLAMA | {"model_type": ["llama"]}, ["['llama']", "llama, mistral, qwen2, qwen3"]),
    (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mrope_section": [1]}}, ["mrope_section"]),
    (LLAMA | {"rope_scaling": "yarn"}, ["must be an object"]),
    (LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
    (
        LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1.0}, "sliding_attention": {"rope_theta": 2.0}}},
        ["differ by layer type"],
    ),
    (MISTRAL | {"layer_types": ["full_attention"] * 4}, ["layer_types", "sliding_attention"]),
    (QWEN3 | {"layer_types": ["full_attention"] * 3}, ["layer_types", "4 qwen3 layers"]),
    (QWEN3 | {"layer_types": ["sliding_attention"] * 4}, ["layer_types", "sliding window"]),
    (LLAMA | {"tokenswift": {"head_type": "chained"}}, ["num_heads"]),
    (LLAMA | {"tokenswift": {"num_heads": 3, "head_type": "parallel"}}, ["'parallel'", "chained"]),
    (
        LLAMA | {"tokenswift": {"num_heads": 3, "node_sets": {"fused": [[0]]}, "x": None}},
        ["unknown fields: node_sets {'fused': [[0]]}; known: num_heads, head_type, node_set,"],
    ),
    (LLAMA | {"medusa_heads": -1}, ["draft heads", "-1"]),
]


@pytest.mark.parametrize(("config", "parts"), ERRORS)
def test_errors_are_one_line_that_names_the_cause(config, parts):
    with pytest.raises(UserError) as caught:
        model_config(config)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("fields", "longest"),
    [
        ({}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 16384),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, 4096),
        ({"rope_scaling": LINEAR | {"original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}, 16384),
        ({"rope_scaling": {"type": "yarn", "factor": 2.5}, "original_max_position_embeddings": 2048}, 5120),
        ({"rope_scaling": {"rope_type": "llama3"} | LLAMA3}, 65536),
        ({"rope_scaling": {"type": "linear", "factor": 1e38}}, 2**31 - 1),
        ({"rope_parameters": {"rope_type": "default"}, "original_max_position_embeddings": 99999}, 4096),
    ],
)
def test_the_longest_text(fields, longest):
    assert model_config(LLAMA | {"max_position_embeddings": 4096} | fields).max_position_embeddings == longest


LLAMA31 = LLAMA | {
    "max_position_embeddings": 131072,
    "rope_theta": 5e5,
    "rope_scaling": {"rope_type": "llama3"} | LLAMA3,
}
QWEN = QWEN2 | {"max_position_embeddings": 32768, "rope_theta": 1e6}
OVERRIDES = [
    # (config, override, kind, theta, factor, original, longest position)
    (QWEN, {"rope_type": "yarn", "factor": 4.0}, "yarn", 1e6, 4.0, 32768, 131072),
    (QWEN, {"type": "yarn", "factor": 2.5, "rope_theta": 5e6}, "yarn", 5e6, 2.5, 32768, 81920),
    (QWEN, {"rope_type": "linear", "factor": 2}, "linear", 1e6, 2.0, None, 65536),
    (QWEN, {"rope_theta": 1e7, "max_position_embeddings": 99}, "default", 1e7, None, None, 99),
    (QWEN, {"rope_theta": 1e7}, "default", 1e7, None, None, 32768),
    (LLAMA31, {"factor": 32.0}, "llama3", 5e5, 32.0, 8192, 262144),
    (LLAMA31, {"rope_type": "yarn", "factor": 4}, "yarn", 5e5, 4.0, 8192, 131072),
    (LLAMA31, {"rope_type": "default"}, "default", 5e5, None, None, 131072),
    (
        LLAMA31,
        {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 131072},
        "yarn",
        5e5,
        4.0,
        131072,
        524288,
    ),
]


@pytest.mark.parametrize(("config", "override", "kind", "theta", "factor", "original", "longest"), OVERRIDES)
def test_rope_override(config, override, kind, theta, factor, original, longest):
    before = dict(config)
    changed = model_config(rope_override(config, override))
    actual = changed.rope
    assert (actual.type, actual.theta, actual.factor, actual.original_max_position) == (kind, theta, factor, original)
    assert changed.max_position_embeddings == longest
    assert config == before
    unchanged = {"rope", "max_position_embeddings"}
    assert {k: v for k, v in vars(changed).items() if k not in unchanged} == {
        k: v for k, v in vars(model_config(config)).items() if k not in unchanged
    }


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ({}, "JSON object"),
        ([1], "JSON object"),
        ({"rope_type": "dynamic", "factor": 2}, "dynamic"),
        ({"rope_type": "yarn"}, "needs factor"),
        ({"rope_type": "yarn", "faktor": 4}, "faktor"),
        ({"max_position_embeddings": 0}, "max_position_embeddings"),
        ({"max_position_embeddings": "x"}, "of rope_override is 'x'"),
    ],
)
def test_bad_rope_overrides(override, part):
    with pytest.raises(UserError, match=part):
        rope_override(QWEN, override)


@pytest.mark.parametrize("scaling", [{"type": "dynamic", "factor": 2.0}, {"type": "longrope", "short_factor": [1.0]}])
def test_an_override_replaces_a_type_that_is_not_known(scaling):
    """The error about such a type advises it."""
    changed = model_config(rope_override(QWEN | {"rope_scaling": scaling}, {"rope_type": "yarn", "factor": 2.0}))
    assert (changed.rope.type, changed.rope.theta, changed.rope.factor) == ("yarn", 1e6, 2.0)
    assert (changed.rope.original_max_position, changed.max_position_embeddings) == (32768, 65536)
