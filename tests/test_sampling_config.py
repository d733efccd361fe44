"""The values that SamplingConfig accepts, its errors for others, and the reading of generation_config.json."""

import dataclasses
import math

import numpy as np
import pytest
from transformers import GenerationConfig

from tokenswift_jax.errors import TextWarning, UserError
from tokenswift_jax.generation_config import Ends, ends, from_generation_config, warn_of_unknown
from tokenswift_jax.sampling import SamplingConfig, check_vocabulary, resolve_sampling


def test_defaults_are_neutral():
    assert dataclasses.asdict(SamplingConfig()) == {
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "eta_cutoff": None,
        "repetition_penalty": 1.0,
        "penalty_window": None,
        "min_tokens_to_keep": 1,
        "suppress_tokens": (),
        "seed": 0,
        "sequence": 0,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", 1e-3),
        ("top_k", 1),
        ("top_k", np.int64(7)),
        ("top_p", 1.0),
        ("top_p", np.float32(0.5)),
        ("min_p", 0),
        ("min_p", 1),
        ("eta_cutoff", 2e-4),
        ("repetition_penalty", 0.8),
        ("penalty_window", 1),
        ("min_tokens_to_keep", 20),
        ("seed", 2**32 - 1),
        ("sequence", 2**31 - 1),
    ],
)
def test_values_in_range_are_kept_as_plain_numbers(name, value):
    kept = getattr(SamplingConfig(**{name: value}), name)
    assert kept == value
    assert type(kept) in (int, float)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("temperature", -0.1, "0 (greedy) or a number from 1e-6 to 1e6"),
        ("temperature", 1e-30, "from 1e-6"),
        ("temperature", math.inf, "0 (greedy)"),
        ("temperature", 10**400, "0 (greedy)"),
        ("temperature", math.nan, "0 (greedy)"),
        ("temperature", "hot", "0 (greedy)"),
        ("temperature", None, "0 (greedy)"),
        ("temperature", True, "0 (greedy)"),
        ("top_k", 0, "1 or above"),
        ("top_k", 2.5, "whole number"),
        ("top_k", True, "whole number"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("min_p", -0.1, "from 0 to 1"),
        ("min_p", 1.5, "from 0 to 1"),
        ("min_p", math.nan, "from 0 to 1"),
        ("eta_cutoff", 0.0, "above 0 and below 1"),
        ("eta_cutoff", 1.0, "above 0 and below 1"),
        ("repetition_penalty", 0.0, "from 1e-6 to 1e6"),
        ("repetition_penalty", math.inf, "from 1e-6 to 1e6"),
        ("penalty_window", 0, "1 or above"),
        ("min_tokens_to_keep", 0, "1 or above"),
        ("suppress_tokens", (3, -1), "0 or above"),
        ("suppress_tokens", (1.5,), "token ids"),
        ("suppress_tokens", 7, "list of token ids"),
        ("suppress_tokens", "12", "list of token ids"),
        ("seed", -1, "from 0 to 4294967295"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("sequence", -1, "from 0 to 2147483647"),
        ("sequence", 2**31, "from 0 to 2147483647"),
    ],
)
def test_values_out_of_range_name_the_field_the_value_and_the_range(name, value, right):
    with pytest.raises(UserError) as raised:
        SamplingConfig(**{name: value})
    message = str(raised.value)
    assert message.startswith(f"{name} is {value!r}")
    assert right in message
    assert "\n" not in message


def test_suppress_tokens_become_a_tuple_so_the_config_is_hashable():
    config = SamplingConfig(suppress_tokens=[np.int32(5), 3])  # pyright: ignore[reportArgumentType]
    assert config.suppress_tokens == (5, 3)
    assert hash(config) == hash(SamplingConfig(suppress_tokens=(5, 3)))


def test_vocabulary():
    check_vocabulary(SamplingConfig(suppress_tokens=(0, 9)), 10)
    with pytest.raises(UserError, match=r"outside the vocabulary: \[10, 12\]; the last id is 9"):
        check_vocabulary(SamplingConfig(suppress_tokens=(12, 3, 10, 12)), 10)
    with pytest.raises(UserError, match="leave at least one"):
        check_vocabulary(SamplingConfig(suppress_tokens=(0, 1, 2)), 3)


def test_generation_config_fields_are_read():
    read = from_generation_config(
        {
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "min_p": 0.1,
            "eta_cutoff": 3e-4,
            "repetition_penalty": 1.05,
            "penalty_window": 1024,
            "suppress_tokens": [4, 5],
            "seed": 9,
            "eos_token_id": [1, 2],
            "max_length": 20,
            "transformers_version": "5.0",
        }
    )
    assert read == {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.1,
        "eta_cutoff": 3e-4,
        "repetition_penalty": 1.05,
        "penalty_window": 1024,
        "suppress_tokens": [4, 5],
    }


def test_without_do_sample_a_text_is_greedy_as_in_transformers():
    greedy = SamplingConfig(temperature=0.0)
    assert from_generation_config({}) == from_generation_config({"do_sample": True}) == {}
    assert resolve_sampling({}, None) == resolve_sampling({}, {}) == greedy
    assert resolve_sampling({"seed": 3}, {"do_sample": None, "temperature": 0.7}) == SamplingConfig(0.0, seed=3)
    assert resolve_sampling({}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}) == SamplingConfig(
        temperature=0.0, top_p=0.9, repetition_penalty=1.1
    )


@pytest.mark.parametrize("file", [{}, {"do_sample": False}])
def test_a_temperature_or_a_filter_that_is_given_turns_sampling_on(file):
    assert resolve_sampling({"temperature": 1.0}, file) == SamplingConfig()
    assert resolve_sampling({"top_p": 0.9}, file) == SamplingConfig(top_p=0.9)
    assert resolve_sampling({"top_p": 0.9}, file | {"temperature": 0.6}) == SamplingConfig(0.6, top_p=0.9)
    assert resolve_sampling({"temperature": 0.0}, file).temperature == 0
    assert resolve_sampling({"repetition_penalty": 1.2, "seed": 1}, file).temperature == 0


def test_a_checkpoint_that_samples_and_names_no_top_k_has_that_of_transformers():
    assert GenerationConfig._get_default_generation_params()["top_k"] == 50
    assert resolve_sampling({}, {"do_sample": True}) == SamplingConfig(top_k=50)
    assert resolve_sampling({}, {"do_sample": True, "top_k": None, "temperature": 0.6}) == SamplingConfig(0.6, 50)
    assert resolve_sampling({}, {"do_sample": True, "top_k": 0}) == SamplingConfig()
    assert resolve_sampling({"top_k": 0}, {"do_sample": True}) == SamplingConfig()


@pytest.mark.parametrize("value", ["false", 0, "yes"])
def test_do_sample_is_true_or_false(value):
    with pytest.raises(UserError, match=r"do_sample is .* it must be true or false"):
        resolve_sampling({}, {"do_sample": value})


def test_hf_neutral_values_are_off():
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": None, "eta_cutoff": 0.0, "repetition_penalty": 1.0, "num_beams": 1}
    assert from_generation_config(neutral) == {}
    assert from_generation_config({"min_p": 0.0, "top_k": None, "temperature": None}) == {}


def test_do_sample_false_is_greedy_at_any_temperature():
    assert from_generation_config({"do_sample": False, "temperature": 0.7}) == {"temperature": 0.0}
    assert resolve_sampling({"temperature": 0.5}, {"do_sample": False}).temperature == 0.5


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 4},
        {"typical_p": 0.9},
        {"epsilon_cutoff": 3e-4},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[5]]},
        {"encoder_repetition_penalty": 1.2},
        {"forced_eos_token_id": 0},
        {"forced_bos_token_id": 1},
        {"min_length": 5},
        {"guidance_scale": 1.5},
        {"sequence_bias": {(1,): 2.0}},
        {"begin_suppress_tokens": [220]},
        {"exponential_decay_length_penalty": (10, 1.1)},
        {"penalty_alpha": 0.6},
        {"top_h": 0.4},
        {"watermarking_config": {}},
        {"max_time": 3.0},
        {"remove_invalid_values": True},
        {"forced_decoder_ids": [[0, 5]]},
    ],
)
def test_unsupported_fields_are_named(asked):
    (name,) = asked
    with pytest.raises(UserError, match=f"not supported: {name} "):
        from_generation_config({"do_sample": True, **asked})


def test_unsupported_fields_are_all_named():
    with pytest.raises(UserError, match=r"num_beams 4, typical_p 0\.5"):
        from_generation_config({"num_beams": 4, "typical_p": 0.5})


def test_unsupported_fields_at_their_neutral_value_pass():
    neutral = {
        "num_beams": 1,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "encoder_repetition_penalty": 1.0,
        "bad_words_ids": None,
        "forced_eos_token_id": None,
        "min_length": 0,
        "num_return_sequences": 1,
        "token_healing": False,
    }
    assert from_generation_config(neutral) == {}


def test_given_wins_over_the_checkpoint_and_the_checkpoint_over_neutral():
    config = resolve_sampling({"top_p": 0.5, "seed": 3}, {"top_p": 0.9, "min_p": 0.1})
    assert config == SamplingConfig(top_p=0.5, min_p=0.1, seed=3)


def test_a_filter_of_the_checkpoint_can_be_switched_off():
    checkpoint = {"top_k": 20, "top_p": 0.9, "min_p": 0.1, "eta_cutoff": 1e-3, "repetition_penalty": 1.2}
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "eta_cutoff": 0.0, "repetition_penalty": 1.0}
    assert resolve_sampling(off, checkpoint) == SamplingConfig(top_p=1.0, min_p=0.0)
    assert resolve_sampling({"top_k": None}, checkpoint).top_k is None


def test_a_bad_value_in_the_checkpoint_is_refused():
    with pytest.raises(UserError, match=r"top_p is 1\.5"):
        resolve_sampling({}, {"top_p": 1.5})


def test_every_field_of_transformers_is_honoured_refused_or_known_to_change_nothing(recwarn):
    """A field that transformers adds must be looked at, so it fails here first."""
    warn_of_unknown({name: 1 for name in vars(GenerationConfig()) if name != "_original_object_hash"})
    assert [str(warning.message) for warning in recwarn if warning.category is TextWarning] == []


def test_unknown_fields_are_named():
    with pytest.warns(TextWarning, match="not known here and have no effect: temparature, chat_format"):
        warn_of_unknown({"temparature": 0.5, "chat_format": "chatml", "nothing": None, "top_k": 3})


def test_the_ends_of_a_file():
    assert ends({}) == ends({"min_new_tokens": None, "stop_strings": None}) == Ends(0, None, ())
    assert ends({"min_new_tokens": 2, "max_new_tokens": 9, "stop_strings": "x"}) == Ends(2, 9, ("x",))
    assert ends({"stop_strings": ["x", "y"]}).stops == ("x", "y")
    for wrong in ({"min_new_tokens": "3"}, {"max_new_tokens": 0}, {"stop_strings": 5}, {"stop_strings": ["x", ""]}):
        (name,) = wrong
        with pytest.raises(UserError, match=f"{name} is .* in generation_config.json"):
            ends(wrong)
