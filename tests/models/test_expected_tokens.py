"""Expected tokens of config.json: what they may be, and what they say about trees that nobody measured."""

import pytest

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.expected_tokens import ExpectedTokens, parse_expected_tokens

STORED = {"1": 1.4, "4": 2, "16": 2.2}


def test_a_curve_is_read_and_written():
    found = parse_expected_tokens(STORED, 2)
    assert found == ExpectedTokens(((1, 1.4), (4, 2.0), (16, 2.2)))
    assert parse_expected_tokens(found.to_json(), 2) == found
    assert parse_expected_tokens(None, 2) is parse_expected_tokens({}, 2) is None


def test_trees_between_two_that_were_measured():
    found = parse_expected_tokens(STORED, 2)
    values = {nodes: found.with_nodes(nodes) for nodes in (1, 2, 4, 8, 16, 63)}
    assert values == pytest.approx({1: 1.4, 2: 1.7, 4: 2.0, 8: 2.1, 16: 2.2, 63: 2.2})
    assert ExpectedTokens(((4, 2.0),)).with_nodes(1) == 1.25


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.4], "expected_tokens in config.json is [1.4]"),
        (0, "expected_tokens in config.json is 0"),
        ({"fused": 1.4}, "'fused' nodes"),
        ({"0": 1.4}, "at least 1"),
        ({"3": 1.4, "1": 1.2}, "at least 4"),
        ({"1": "1.4"}, "'1.4' tokens for 1 nodes"),
        ({"1": True}, "True tokens"),
        ({"1": float("nan")}, "nan tokens"),
        ({"1": 0.9}, "emits 1 to 3"),
        ({"1": 3.1}, "emits 1 to 3"),
    ],
)
def test_a_bad_curve_is_refused(value, words):
    with pytest.raises(UserError) as caught:
        parse_expected_tokens(value, 2)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
