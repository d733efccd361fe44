"""The library refuses a field that its mode does not use, as the commands do, and copies to another mode drop it."""

from dataclasses import replace

import pytest
import small_models

import tokenswift_jax as ts
from tokenswift_jax.cli import flags
from tokenswift_jax.modes import MODES, SCHEDULES, used_fields
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.serve.plan_set import serving_plan

# Another value than the default, and the flag that gives it.
CHOSEN = {
    "tree": ((1, 2), ["--tree", "1,2"]),
    "node_budget": (5, ["--node-budget", "5"]),
    "ngram_k": (3, ["--ngram-k", "3"]),
    "ngram_slots": (3, ["--ngram-slots", "3"]),
    "draft_cache": (64, ["--draft-cache", "64"]),
    "draft_sinks": (4, ["--draft-sinks", "4"]),
    "draft_block": (16, ["--draft-block", "16"]),
    "refresh_interval": (5, ["--refresh-interval", "5"]),
    "shared_noise": (False, ["--no-shared-noise"]),
    "draft_weights": ("int8", ["--draft-weights", "int8"]),
    "draft_cache_dtype": ("int8", ["--draft-cache-dtype", "int8"]),
}
WAYS = [(mode, schedule) for mode in MODES for schedule in (SCHEDULES if mode == "tokenswift" else ("auto",))]


@pytest.mark.parametrize("field", CHOSEN)
@pytest.mark.parametrize(("mode", "schedule"), WAYS)
def test_one_rule_for_the_library_and_the_command(mode, schedule, field):
    value, given = CHOSEN[field]
    schedules = ["--schedule", schedule] if mode == "tokenswift" else []
    doors = (
        lambda: ts.SpeculationConfig(mode, schedule, **{field: value}),
        lambda: flags.parse(["--mode", mode, *schedules, *given]),
    )
    for door in doors:
        if field in used_fields(mode, schedule):
            door()
        else:
            with pytest.raises(ts.UserError, match="no use for") as caught:
                door()
            assert {"mode", field} <= {*caught.value.arguments}


def test_a_schedule_is_a_field_of_one_mode():
    with pytest.raises(ts.UserError, match="mode ngram has no use for schedule"):
        ts.SpeculationConfig("ngram", "partial")


@pytest.mark.parametrize(("mode", "schedule"), WAYS)
def test_default_values_given_are_no_choice(mode, schedule):
    plain = ts.SpeculationConfig(mode, schedule)
    assert replace(plain) == plain == ts.SpeculationConfig(mode, schedule, ngram_k=20, draft_cache=4096, tree=None)


@pytest.mark.parametrize(("mode", "schedule"), WAYS)
def test_a_copy_in_another_mode_keeps_what_that_mode_uses(mode, schedule):
    chosen = ts.SpeculationConfig(tree=(1, 2), node_budget=5, ngram_k=3, draft_cache=64, draft_weights="int8")
    copy = chosen.with_mode(mode, schedule)
    assert (copy.mode, copy.schedule) == (mode, schedule)
    for field in CHOSEN:
        source = chosen if field in used_fields(mode, schedule) else ts.SpeculationConfig()
        assert getattr(copy, field) == getattr(source, field)


@pytest.mark.parametrize("heads", [0, 3])
def test_a_server_picks_a_mode_for_fields_of_auto(heads):
    chosen = ts.SpeculationConfig(node_budget=5, ngram_k=3, draft_cache=64)
    config = replace(small_models.config(64), num_draft_heads=heads)
    found = serving_plan(config, chosen, SamplingFeatures.GREEDY).plan
    assert found.rows == (6 if heads else 1)
