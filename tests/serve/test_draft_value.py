"""Whether a pool with several texts drafts."""

import pytest
import small_models

from tokenswift_jax.serve import draft_value
from tokenswift_jax.serve.draft_value import DraftValue
from tokenswift_jax.serve.plan_set import PlanSet
from tokenswift_jax.speculation import SpeculationConfig


def test_drafts_pay_while_they_give_more_than_they_cost():
    """An iteration with drafts takes as long as 1.5 plain ones."""
    value = DraftValue(drafting=0.3, plain=0.2)
    assert value.pays()
    value.took(tokens=20, iterations=10)
    assert value.pays()
    for _ in range(30):
        value.took(tokens=11, iterations=10)
    assert not value.pays()


def test_drafts_are_tried_again_after_a_while_and_for_a_new_prediction():
    value = DraftValue(drafting=0.3, plain=0.2)
    value.took(tokens=1, iterations=1)
    chunks = [value.pays() for _ in range(2 * draft_value._RETRY)]
    assert sum(chunks) == 2
    value.took(tokens=0, iterations=0)
    assert not value.pays()
    value.retry()
    assert value.pays()
    value.took(tokens=30, iterations=10)
    assert value.pays()


@pytest.mark.parametrize(("mode", "optional"), [("auto", True), ("ngram", False)])
def test_a_mode_that_a_person_names_always_drafts(mode, optional):
    assert PlanSet(small_models.random_model(64).config, SpeculationConfig(mode=mode)).optional == optional
