"""The sampling that a GGUF file recommends keeps its meaning, and a key without one here is named."""

from pathlib import Path

import pytest

from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.generation import _sampling
from tokenswift_jax.errors import TextWarning, UserError
from tokenswift_jax.generation_config import warn_of_unknown
from tokenswift_jax.sampling import resolve_sampling


def recommended(**keys):
    metadata = {f"general.sampling.{name}": value for name, value in keys.items()}
    return _sampling(Fields(Path("model.gguf"), metadata, "general.sampling."))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {}),
        ({"temp": 0.5, "top_k": 20}, {"do_sample": True, "temperature": 0.5, "top_k": 20}),
        ({"temp": 0.5, "top_k": -1}, {"do_sample": True, "temperature": 0.5, "top_k": 0}),
        (
            {"penalty_repeat": 1.5, "penalty_last_n": 64},
            {"do_sample": True, "repetition_penalty": 1.5, "penalty_window": 64},
        ),
        ({"penalty_repeat": 1.5, "penalty_last_n": -1}, {"do_sample": True, "repetition_penalty": 1.5}),
        ({"temp": 0.5, "penalty_repeat": 1.5, "penalty_last_n": 0}, {"do_sample": True, "temperature": 0.5}),
        ({"penalty_last_n": 64}, {}),
        ({"temp": 0.0, "penalty_repeat": 1.5}, {"do_sample": False, "repetition_penalty": 1.5}),
        ({"temp": -1.0}, {"do_sample": False}),
        ({"top_p": 2.0, "min_p": -1.0}, {"do_sample": True, "top_p": 1, "min_p": 0}),
        ({"xtc_probability": 0.0, "xtc_threshold": 0.1, "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1}, {}),
        ({"sequence": "top_k;temp"}, {"general.sampling.sequence": "top_k;temp"}),
    ],
)
def test_llama_cpp_s_values_in_hf_s_words(keys, expected):
    found = recommended(**keys)
    assert found == expected
    resolve_sampling({}, found)


def test_keys_without_a_word_are_named():
    found = recommended(temp=0.5, mirostat=2, mirostat_tau=5.0, frequency_penalty=0.6, sequence="top_k;temp")
    names = r"mirostat, general\.sampling\.frequency_penalty, general\.sampling\.mirostat_tau, general\.sampling\.sequ"
    with pytest.warns(TextWarning, match=names):
        warn_of_unknown(found)


@pytest.mark.parametrize(("name", "value"), [("top_k", 1.5), ("penalty_last_n", [64]), ("temp", "hot"), ("temp", True)])
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(UserError, match=rf"general\.sampling\.{name} is "):
        recommended(**{name: value})
