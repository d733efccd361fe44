"""The goals of an accelerator, judged by measured rows."""

import pytest

from tokenswift_jax.hardware import (
    shapes,
)
from tokenswift_jax.hardware.goals import goals


def timed(name, length, milliseconds, share, model="Llama-3.1-8B", floor=1.0, **more):
    about = {"section": "steps", "model": model, "step": name, "length": length, "floor_milliseconds": floor}
    return about | {"milliseconds": milliseconds, "of_copy_bandwidth": share} | more


def test_goals_are_compared_with_the_worst_measurement():
    rows = [timed("plain", 4096, 3.0, 0.5), timed("plain", 16384, 4.0, 0.9), timed("plain", 65536, 5.0, 0.84)]
    rows += [timed("verify-16", 4096, 9.0, 0.3), timed("verify-16", 16384, 4.2, 0.8)]
    rows += [timed("verify-16", 65536, 5.5, 0.8)]
    replay = {"section": "replay", "model": "Llama-3.1-8B", "acceptance_rate": 0.6, "tokens": 100_000}
    rows += [replay | {"step": "verify-16", "seconds": 280.0}, replay | {"step": "partial-16", "seconds": 350.0}]
    rows += [replay | {"step": "verify-16", "seconds": 200.0, "acceptance_rate": 0.8}]
    rows += [replay | {"step": "verify-16", "seconds": 20.0, "model": "Qwen2.5-1.5B"}]
    plain, narrow, wide, replayed = goals(rows)
    assert (plain["value"], plain["at_least"], plain["met"]) == (0.84, 0.85, False)
    assert (narrow["value"], narrow["at_most"], narrow["met"], narrow["length"]) == (1.1, 1.1, True, 65536)
    assert "missing" in wide
    assert (replayed["value"], replayed["at_most"], replayed["met"]) == (280.0, 300.0, True)


def test_the_goal_of_64_rows_is_what_the_roofline_leaves_possible():
    """Within 5 percent of its own ratio at each length: 1.1 after 16,384 tokens, 1.25 after 126,976; 16 rows may cost
    1.1 even where it asks for less."""
    rows = [timed("plain", 16384, 4.0, 0.9, floor=3.0), timed("plain", 126976, 8.0, 0.9, floor=6.0)]
    rows += [timed("verify-64", 16384, 4.6, 0.8, floor=3.3), timed("verify-64", 126976, 10.4, 0.8, floor=7.5)]
    _, _, wide, _ = goals(rows)
    assert wide["length"] == 16384, "the nearest to its own bound"
    assert (wide["value"], wide["at_most"], wide["met"]) == (pytest.approx(1.15), pytest.approx(1.155), True)
    _, _, wide, _ = goals([*rows[:3], timed("verify-64", 126976, 10.8, 0.8, floor=7.5)])
    assert (wide["length"], wide["value"], wide["at_most"]) == (126976, 1.35, pytest.approx(1.3125))
    assert not wide["met"]
    # Heads without groups: the roofline of 64 rows is a plain step's, and 1.1 of it is too much.
    _, narrow, wide, _ = goals(
        [*rows[:1], timed("verify-16", 16384, 4.4, 0.8, floor=3.0), timed("verify-64", 16384, 4.4, 0.8, floor=3.0)]
    )
    assert (narrow["at_most"], narrow["met"], wide["at_most"], wide["met"]) == (1.1, True, pytest.approx(1.05), False)


def test_goals_are_of_one_model_and_of_one_process_where_they_can_be():
    rows = [timed("plain", 16384, 4.0, 0.9, stage="a"), timed("plain", 16384, 5.0, 0.9, stage="b")]
    rows += [timed("verify-16", 16384, 5.5, 0.8, stage="b"), timed("plain", 16384, 1.0, 0.4, model="Qwen2.5-1.5B")]
    large, small = [[row for row in goals(rows) if row["model"] == name] for name in (shapes.NAMES[:2])]
    assert large[1]["value"] == 1.1
    assert (small[0]["value"], "at_least" in small[0], "met" in small[0]) == (0.4, False, False), "no goal is set"


def test_the_rows_that_auto_is_offered_are_judged_beside_a_plain_step_of_their_own_process():
    """On an H200 12 rows of Qwen2.5-14B's groups of 5, not 16; at the beginning of a long text 25 too."""
    about = {"model": "Qwen2.5-14B", "device": "NVIDIA H200", "platform": "gpu", "date": "2026-11-27T14:00:00"}
    fifth = about | {"plan": "fifth", "stage": "14B"}
    newest = [timed("plain", 16384, 8.0, 0.95, **about, plan="sixth", stage="14B")]
    newest += [timed("verify-12", 16384, 9.25, 0.8, **fifth), timed("verify-16", 16384, 10.1, 0.7, **fifth)]
    _, offered, wide, _ = goals(newest, [*newest, timed("plain", 16384, 8.5, 0.9, **fifth)])
    assert (offered["value"], offered["step"], offered["met"]) == (pytest.approx(9.25 / 8.5), "verify-12", True)
    assert "missing" in wide
    _, offered, _, _ = goals([*newest, timed("verify-25", 16384, 10.1, 0.7, **fifth)])
    assert (offered["value"], offered["step"], offered["met"]) == (10.1 / 8.0, "verify-25", False)
    _, offered, _, _ = goals([*newest, timed("verify-25", 126976, 20.0, 0.7, **fifth)])
    assert offered["step"] == "verify-12", "no text has 25 rows there"


def test_steps_of_an_earlier_day_are_of_older_code_and_judged_by_no_goal():
    rows = [timed("plain", 65536, 6.7, 0.5, date="2026-11-26"), timed("plain", 16384, 4.8, 0.9, date="2026-11-27")]
    rows.append(timed("verify-16", 65536, 9.9, 0.8, date="2026-11-26"))
    plain, offered, *_ = goals(rows)
    assert (plain["value"], plain["met"], "missing" in offered) == (0.9, True, True)
