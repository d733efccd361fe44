"""The check of an iteration's bookkeeping on a device: right kernels pass, a wrong one is named."""

from pallas_kernels.implementation import compiling_for
from tokenswift_jax.hardware import bookkeeping_checks


def test_interpreted_kernels_are_right_and_a_wrong_one_is_found(monkeypatch):
    monkeypatch.setattr(bookkeeping_checks, "SHAPES", {16: bookkeeping_checks.SHAPES[16]})
    monkeypatch.setattr(bookkeeping_checks, "LISTED", 128)
    with compiling_for("gpu", interpret=True):
        rows = list(bookkeeping_checks.check_bookkeeping())
    assert [row["kernel"] for row in rows] == ["commit_text", "draft_tree", "ngram_table", "shortlist_edges"]
    assert all(row["good"] for row in rows)

    right, calls = bookkeeping_checks.commit_text, []

    def wrong_once(*given):
        calls.append(given)
        done = right(*given)
        return done._replace(count=done.count + 1) if len(calls) == 1 else done

    monkeypatch.setattr(bookkeeping_checks, "commit_text", wrong_once)
    found = {row["kernel"]: row for row in bookkeeping_checks.check_bookkeeping() if not row["good"]}
    assert list(found) == ["commit_text"]
    assert found["commit_text"]["relative_error"] == bookkeeping_checks.BATCH
