"""Whether a pool with several texts drafts."""

from tokenswift_jax.serve import draft_value
from tokenswift_jax.serve.draft_value import DraftValue


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
