"""Kept costs: what a file gives back, what it refuses, and how disturbed, damaged and concurrent values are taken."""

import json

import numpy as np
import pytest
import small_models

from tokenswift_jax.engine import step_costs
from tokenswift_jax.engine.planner import Planner, measure
from tokenswift_jax.engine.step_costs import StepCosts, costs_in, file_name
from tokenswift_jax.models.expected_tokens import ExpectedTokens
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.speculate.plans import autoregressive_plan, speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

CONFIG = small_models.config(48)
PLAIN = autoregressive_plan(CONFIG, SamplingFeatures.GREEDY)
PLANS = speculative_plans(CONFIG, SpeculationConfig(), SamplingFeatures.GREEDY, "cpu")
FUSED = next(named for named in PLANS if named.schedule == "fused" and named.node_budget == 3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "costs" / "one.json"


def test_costs_come_back_and_are_interpolated_between_lengths(path):
    costs = StepCosts(path)
    assert costs.price(FUSED, 100) is None
    for length, price in ((100, 1.8), (1100, 1.4)):
        costs.add_price(FUSED, length, price)
    costs.add_plain_seconds(PLAIN, 100, 0.03)
    costs.add_accepted(FUSED, 2.5)
    costs.save()
    for seconds in (3.0, 4.0):
        costs.add_missed(FUSED, 512, seconds)
        costs.save()
    again = StepCosts(path)
    prices = [again.price(FUSED, length) for length in (1, 100, 600, 1100, 9000)]
    np.testing.assert_allclose(prices, [1.8, 1.8, 1.6, 1.4, 1.4])
    assert again.plain_seconds(PLAIN, 5000) == 0.03
    assert again.tokens_an_iteration(FUSED) == 2.5
    assert (again.missed_seconds(FUSED, 512), again.missed_seconds(FUSED, 1024)) == (7.0, 0.0)
    assert again.measured(FUSED, 100) == 1
    assert again.measured(FUSED, 100_000) == 0
    other = speculative_plans(CONFIG, SpeculationConfig(), SamplingFeatures.SAMPLED, "cpu")[1]
    assert again.price(other, 100) is None, "sampled steps cost more"


@pytest.mark.parametrize("disturbed", [[6.0], [6.0, 3.0], [0.9], [5.0, 4.0, 9.0]])
def test_disturbed_measurements_are_outvoted(path, disturbed):
    costs = StepCosts(path)
    for price in [*disturbed, *[1.5] * (5 - len(disturbed))]:
        costs.add_price(FUSED, 100, price)
    assert costs.price(FUSED, 100) == 1.5
    assert costs.is_certain(FUSED, 100)


@pytest.mark.parametrize("price", [0.0, -1.0, 0.3, 50.0, float("nan"), float("inf")])
def test_implausible_prices_are_dropped(path, price):
    costs = StepCosts(path)
    costs.add_price(FUSED, 100, price)
    assert costs.price(FUSED, 100) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"format": 0}', b'{"format": 1}', b"null",
     b'{"format": 1, "prices": {"a": {"7": [[1, "x"]]}}, "seconds": {}, "accepted": {}, "ready": {}}',
     b'{"format": 1, "prices": {"a": {"7": [[1, -2]]}}, "seconds": {}, "accepted": {}, "ready": {}}',
     b'{"format": 1, "prices": [], "seconds": 3, "accepted": {}, "ready": {}}'],
)  # fmt: skip
def test_a_damaged_file_is_ignored_and_written_again(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    costs = StepCosts(path)
    assert costs.price(FUSED, 100) is None
    costs.add_price(FUSED, 100, 1.5)
    costs.save()
    assert StepCosts(path).price(FUSED, 100) == 1.5
    assert json.loads(path.read_text())["format"] == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_runs_at_once_keep_what_each_has_learnt(path):
    first, second = StepCosts(path), StepCosts(path)
    first.add_price(FUSED, 100, 1.5)
    second.add_price(PLANS[0], 100, 1.2)
    first.save()
    second.save()
    both = StepCosts(path)
    assert (both.price(FUSED, 100), both.price(PLANS[0], 100)) == (1.5, 1.2)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    costs = StepCosts(tmp_path / "file" / "one.json")
    costs.add_price(FUSED, 100, 1.5)
    costs.save()
    assert costs.price(FUSED, 100) == 1.5


def test_models_batches_and_dtypes_have_files_of_their_own():
    one, other = small_models.successor_model(), small_models.successor_model(layers=1)
    double = small_models.successor_model(dtype=np.float16)
    names = [file_name(model.config, model.params, batch) for model in (one, other, double) for batch in (1, 2)]
    assert len(set(names)) == 6
    assert file_name(one.config, one.params, 1) == names[0]


def test_costs_saved_in_another_thread_are_there_for_the_next_text(monkeypatch, tmp_path):
    monkeypatch.setattr(step_costs, "cache_folder", lambda name: tmp_path / name)
    costs = costs_in("model.json")
    costs.add_price(FUSED, 100, 1.5)
    costs.save_later()
    assert costs_in("model.json").price(FUSED, 100) == 1.5


def test_programs_are_expected_where_the_compilation_cache_keeps_them(monkeypatch):
    costs = StepCosts()
    assert costs.ready_seconds(FUSED, 512) is None
    costs.add_ready(FUSED, 512, 15.0)
    costs.add_ready(FUSED, 512, 2.0)
    for stays, own in ((True, 2.0), (False, 15.0)):
        monkeypatch.setattr(step_costs, "_compiled_programs_stay", lambda stays=stays: stays)
        assert costs.was_compiled(FUSED, 512) is stays
        assert not costs.was_compiled(FUSED, 1024)
        assert costs.ready_seconds(FUSED, 512) == own
        assert costs.ready_seconds(FUSED, 1024) == costs.ready_seconds(PLANS[0], 512) == 15.0


class FakeEngine:
    """An engine whose iterations take given seconds on frozen rows; every third is disturbed."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, 0

    def prepare(self, named):
        return 0.0

    def frozen_seconds(self, named, iterations):
        self.calls += 1
        return self.seconds[named] * iterations * (5 if self.calls % 3 == 0 else 1)


def test_measuring_gives_the_price_of_quiet_iterations():
    costs, engine = StepCosts(), FakeEngine({PLAIN: 0.03, FUSED: 0.045})
    measure(engine, costs, PLAIN, FUSED, 100, compiled=15.0, remaining=0)
    assert costs.price(FUSED, 100) == pytest.approx(1.5)
    assert costs.plain_seconds(PLAIN, 100) == pytest.approx(0.03)


@pytest.mark.parametrize(("compiled", "remaining"), [(0.0, 256), (0.5, 0), (0.0, 500)])
def test_measuring_costs_a_hundredth_of_the_text_or_a_tenth_of_compiling(compiled, remaining):
    """Three measurements of one iteration each take 7.5 steps or 0.23 s."""
    costs, engine = StepCosts(), FakeEngine({PLAIN: 0.03, FUSED: 0.045})
    costs.add_plain_seconds(PLAIN, 100, 0.03)
    measure(engine, costs, PLAIN, FUSED, 100, compiled, remaining)
    assert engine.calls == 0
    measure(engine, costs, PLAIN, FUSED, 100, compiled + 4, remaining)
    assert engine.calls == 6


def test_without_measurements_a_price_is_assumed_from_rows_and_heads():
    planner = Planner(PLAIN, PLANS, 256, StepCosts(), lambda _: None, lambda _: None, head_share=0.2)
    by_nodes = [planner.price(named) for named in PLANS if named.schedule == "fused"]
    assert by_nodes == sorted(by_nodes)
    ngram = next(named for named in PLANS if named.mode == "ngram" and named.node_budget == 3)
    assert planner.price(ngram) == 1 + 4 / 8
    assert planner.price(FUSED) == pytest.approx(1 + 4 / 8 + 0.2)
    assert all(planner.price(named) > 2 for named in PLANS if named.schedule == "partial")


def test_what_training_measured_counts_until_earlier_texts_tell():
    costs, trained = StepCosts(), ExpectedTokens(((1, 1.4), (3, 1.7)))
    planner = Planner(PLAIN, PLANS, 256, costs, lambda _: None, lambda _: None, 0.2, trained=trained)
    partial = next(named for named in PLANS if named.schedule == "partial")
    assert (planner.tokens(FUSED), planner.is_remembered(FUSED)) == (1.7, True)
    assert (planner.tokens(partial), planner.is_remembered(partial)) == (None, False)
    costs.add_accepted(FUSED, 1.2)
    assert planner.tokens(FUSED) == 1.2
