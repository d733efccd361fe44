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
