"""The closing report names the source of greedy text as it is."""

from argparse import Namespace

import pytest

from tokenswift_jax.cli.settings_line import settings_line
from tokenswift_jax.sampling import resolve_sampling

NOTHING = Namespace(sampling={}, max_new_tokens=None, min_new_tokens=None, stop=None)


@pytest.mark.parametrize(
    ("generation_config", "source"),
    [
        ({}, "generation_config.json does not say do_sample"),
        ({"temperature": 0.7}, "generation_config.json does not say do_sample"),
        ({"do_sample": False}, "generation_config.json"),
        ({"do_sample": True, "temperature": 0}, "generation_config.json"),
    ],
)
def test_where_greedy_comes_from(generation_config, source):
    sampling = resolve_sampling({}, generation_config)
    assert settings_line(NOTHING, generation_config, sampling).startswith(f"settings: greedy ({source})")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"temperature": 0, "top_k": 5}, "settings: greedy (flags); top_k 5 (no effect on a greedy text)"),
        ({"temperature": 0, "min_p": 0, "top_p": 1}, "settings: greedy (flags)"),
        ({"penalty_window": 9}, "temperature 1, top_k 50 (defaults); penalty_window 9 (no effect without a penalty)"),
        ({"penalty_window": 9, "repetition_penalty": 1.2}, "repetition_penalty 1.2, penalty_window 9 (flags)"),
        ({"min_tokens_to_keep": 2, "top_k": 0, "top_p": 1}, "min_tokens_to_keep 2 (no effect without a filter)"),
    ],
)
def test_a_setting_without_effect_says_why(given, line):
    of_file = {"do_sample": True, "penalty_window": 7}
    sampling = resolve_sampling(given, of_file)
    options = Namespace(**{**vars(NOTHING), "sampling": given})
    assert settings_line(options, of_file, sampling).endswith(line)
