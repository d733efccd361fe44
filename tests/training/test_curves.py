"""The picture of a run: what goes into it, and that there is one."""

import sys

import numpy as np
import pytest

from tokenswift_jax.errors import UserError
from tokenswift_jax.training.curves import draw_curves, series, thinned
from tokenswift_jax.training.metrics import MetricsWriter


def test_series_gather_a_metric_over_its_own_steps():
    rows = [{"step": 1, "a": 2.0}, {"step": 2, "a": None, "b": 5}, {"step": 4, "a": 1.0}]
    found = series(rows)
    np.testing.assert_array_equal(found["a"][0], [1, 2, 4])
    np.testing.assert_array_equal(found["a"][1], [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(found["b"], ([2], [5.0]))


def test_thinning_averages_neighbours():
    steps, values = thinned(np.arange(6), np.asarray([0.0, 2.0, 4.0, 6.0, 8.0, 10.0]), most=3)
    np.testing.assert_array_equal(steps, [0.5, 2.5, 4.5])
    np.testing.assert_array_equal(values, [1.0, 5.0, 9.0])
    assert thinned(np.arange(3), np.arange(3.0), most=3)[0].tolist() == [0, 1, 2]


def test_a_picture_shows_what_the_file_holds(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        for step in range(300):
            values = {f"train/head_{i}/loss": 2 + i + 4 * 0.98**step for i in (1, 2, 3)}
            writer.write(step, values | {"train/learning_rate": step / 300})
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "two.png")
    with MetricsWriter(tmp_path / "metrics.jsonl", resume_at=300) as writer:
        for step in range(300, 310):
            writer.write(step, {"eval/head_1/model_top_1": 0.5, "eval/expected/fused_t0": 2.0})
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "four.png")
    two, four = image.imread(tmp_path / "two.png"), image.imread(tmp_path / "four.png")
    assert two.shape[1] == four.shape[1]
    assert four.shape[0] == 2 * two.shape[0]
    # Each diagram has lines: pixels that are neither paper nor grey.
    for part in (two[:, : two.shape[1] // 2], two[:, two.shape[1] // 2 :], four[two.shape[0] :]):
        assert (np.ptp(part[..., :3], axis=-1) > 0.2).sum() > 200


def test_nothing_to_draw_and_a_missing_package_are_one_line_errors(tmp_path, monkeypatch):
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write(1, {"train/seconds": 1.0})
    with pytest.raises(UserError, match="no losses"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"tokenswift_jax\[train\]"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
