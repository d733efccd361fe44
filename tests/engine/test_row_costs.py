"""The roofline's price of tree rows against numbers worked by hand and times of an H200; the plans that it offers."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import small_models

from tokenswift_jax.engine import row_costs as module
from tokenswift_jax.engine import session as session_module
from tokenswift_jax.engine.planner import Planner
from tokenswift_jax.engine.row_costs import FEWEST, GPU_TILES, RowCosts, row_costs_of
from tokenswift_jax.engine.session import Session
from tokenswift_jax.engine.step_costs import StepCosts
from tokenswift_jax.engine.text_knowledge import ACCELERATOR_ROWS
from tokenswift_jax.hardware.shapes import config_of
from tokenswift_jax.parallel.device_rates import RATES
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.plans import autoregressive_plan, speculative_plans
from tokenswift_jax.speculation import SpeculationConfig

LLAMA = config_of("Llama-3.1-8B")  # 4 query heads a KV head
H200 = RowCosts(LLAMA, RATES["H200"], attention_rate=0.45, tiles=GPU_TILES)
WEIGHTS = 2 * (32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) + 4096 * 128256)  # bytes: 15.0e9
POSITION = 32 * 2 * 8 * 128 * 2  # bytes of K and V
PRODUCTS = 4 * 32 * 32 * 128  # operations of a row with a position


def seconds(rows, length, rate, batch=1):
    """A step of Llama-3.1-8B on an H200; the weights' products take less time than reading them."""
    positions = batch * (length + rows)
    attention = max(POSITION * positions / 4.8e12, PRODUCTS * rows * positions / (rate * 989e12))
    return WEIGHTS / 4.8e12 + attention + 8 * rows * batch * 128256 / 4.8e12


@pytest.mark.parametrize("length", [4096, 16384, 65536, 126976])
@pytest.mark.parametrize("rows", [16, 64])
def test_a_price_is_the_ratio_of_two_rooflines(rows, length):
    for rate in (0.45, 1.0):
        expected = seconds(rows, length, rate) / seconds(1, length, rate)
        assert replace(H200, attention_rate=rate).price(rows, length) == pytest.approx(expected, rel=1e-6)
    expected = seconds(rows, length, 0.45, batch=2) / seconds(1, length, 0.45, batch=2)
    assert replace(H200, batch=2).price(rows, length) == pytest.approx(expected, rel=1e-6)


def test_attention_is_free_up_to_as_many_rows_as_the_query_group_divides():
    """At the data sheet's rate an H200 multiplies 206 numbers of two bytes in the time of reading one: 51 rows of
    groups of 4, 34 of 6, and more than 64 without groups, after any length."""
    far = 10**7  # so that attention is the step
    assert pytest.approx(206, rel=0.001) == 989e12 / 4.8e12
    for name, group, most in (("Llama-3.1-8B", 4, 56), ("Qwen2.5-1.5B", 6, 32), ("Yarn-Llama-2-7B", 1, 64)):
        config = config_of(name)
        assert config.num_heads // config.num_kv_heads == group
        costs = RowCosts(config, RATES["H200"])
        assert costs.price(206 // group, far) == pytest.approx(1, rel=0.01)
        assert costs.most_rows(far) == most  # multiples of 8 of 1.1 times 51, 34 and 206
    one_byte = RowCosts(LLAMA, RATES["H200"], cache_itemsize=1)
    assert one_byte.price(51, far) == pytest.approx(2 * 51 / 51.5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3.1-8B", [64, 64, 32, 16, 16]),
        ("Qwen2.5-14B", [51, 51, 25, 12, 12]),
        ("Qwen2.5-1.5B", [64, 42, 21, 10, 10]),
        ("Yarn-Llama-2-7B", [64, 64, 64, 64, 64]),
    ],
)
def test_rows_without_extra_time_fall_with_the_length_and_the_query_group(name, expected):
    costs = replace(H200, config=config_of(name))
    assert [costs.most_rows(length) for length in (512, 4096, 16384, 65536, 126976)] == expected


def test_many_texts_fill_the_products_with_fewer_rows_each():
    """64 rows of 32 texts are 2,048 rows of a product, ten times what an H200 multiplies for free."""
    found = [replace(H200, batch=batch).most_rows(512) for batch in (1, 4, 8, 16, 32)]
    assert found == [64, 32, 16, 8, FEWEST]


def test_windows_bound_what_attention_reads():
    windowed = replace(LLAMA, sliding_windows=(4096,) * 32)
    assert replace(H200, config=windowed).price(64, 126976) == pytest.approx(
        seconds(64, 4096, 0.45) / seconds(1, 4096, 0.45)
    )


def test_budgets_are_for_the_beginning_and_the_end_of_a_text():
    assert H200.node_budgets(100, 1000) == (15, 63), "what accelerators had at every length"
    assert H200.node_budgets(16384, 116384) == (15, 31)
    assert H200.node_budgets(65536, 126976) == (15,)
    assert replace(H200, config=config_of("Qwen2.5-1.5B")).node_budgets(16384, 116384) == (9, 20)


def test_rows_that_fill_no_program_of_attention_cost_those_that_fill_it():
    """16 rows of groups of 5 are 80 of a program of 128, which 25 rows fill."""
    costs = replace(H200, config=config_of("Qwen2.5-14B"))
    far = 10**7
    assert costs.price(16, far) == pytest.approx(costs.price(25, far), rel=1e-3)
    assert costs.price(12, far) == pytest.approx(1, rel=1e-3), "60 of 64: reading takes as long"
    assert costs.price(26, far) == pytest.approx(2 * costs.price(16, far), rel=1e-2)


def test_assumed_prices_are_those_that_an_h200_showed():
    """Times of benchmarks/2026-11-27-device-h200-contact-third.json, in ms, and of attention's 64 rows in the
    -fourth's, whose tile is decoding's now, in us a layer."""
    plain, measured = {16384: 5.03, 126976: 8.34}, {16384: 5.34, 126976: 8.87}
    for length, milliseconds in measured.items():
        assumed = max(1 + 16 / ACCELERATOR_ROWS, H200.price(16, length))
        assert assumed == pytest.approx(milliseconds / plain[length], rel=0.08)
    slope = seconds(64, 126976, 0.45) - seconds(64, 16384, 0.45)
    assert slope == pytest.approx(32 * (326.4e-6 - 66.8e-6), rel=0.02)


def test_a_planner_assumes_the_larger_of_what_was_measured_and_the_roofline(monkeypatch):
    named = speculative_plans(LLAMA, SpeculationConfig(), SamplingFeatures.GREEDY, "gpu", (15, 63))
    wide = next(one for one in named if one.mode == "ngram" and one.node_budget == 63)
    plain = autoregressive_plan(LLAMA, SamplingFeatures.GREEDY)
    planner = Planner(plain, named, 200_000, StepCosts(), lambda _: None, lambda _: None, 0.2, row_costs=H200)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert planner.price(wide) == 1 + 61 / 123, "20 continuations of 3 tokens, and the root"
    planner.observe(plain, 126975, 126975, 1000.0)
    assert planner.price(wide) == H200.price(61, 126976) > 1.8


def test_a_session_offers_plans_for_its_texts(monkeypatch):
    """From the longest text to the longest that may come; the caller's node budget comes first."""
    asked, offered = [], []

    class Costs:
        def node_budgets(self, begin, end):
            asked.append((begin, end))
            return (2, 5)

    def costs_of(config, dtype, batch, cache_dtype):
        asked.append((str(dtype), batch, cache_dtype))
        return Costs()

    class Recorded(Planner):
        def __init__(self, plain, plans, *more, trained, row_costs, drafts_always):
            offered.append([named.node_budget for named in plans])
            assert isinstance(row_costs, Costs)
            super().__init__(plain, plans, *more, drafts_always=drafts_always)

    monkeypatch.setattr(session_module, "row_costs_of", costs_of)
    monkeypatch.setattr(session_module, "Planner", Recorded)
    model = small_models.random_model(vocab=48)
    requests = batch_of([[1, 2, 3], [4] * 7], SamplingConfig(temperature=0), max_new_tokens=20)
    for node_budget in (None, 4):
        speculation = SpeculationConfig(draft_cache=64, draft_sinks=8, node_budget=node_budget)
        Session(model, requests, speculation, emitted=[[], [5]], cache_dtype="int8")
    assert asked == [("float32", 2, "int8"), (8, 27)] * 2
    assert [sorted(set(budgets)) for budgets in offered] == [[2, 5], [4]]


def device(monkeypatch, platform, kind):
    monkeypatch.setattr(module.jax, "devices", lambda: [SimpleNamespace(platform=platform, device_kind=kind)])


def test_costs_are_of_the_attached_device(monkeypatch):
    assert row_costs_of(LLAMA, jnp.bfloat16, 1) is None, "a CPU keeps its own budgets"
    device(monkeypatch, "gpu", "NVIDIA H200")
    assert row_costs_of(LLAMA, jnp.bfloat16, 1) == H200
    assert row_costs_of(LLAMA, jnp.bfloat16, 3, "int8") == replace(H200, batch=3, cache_itemsize=1)
    assert row_costs_of(LLAMA, jnp.float32, 1) is None, "the rates are those of two bytes"
    device(monkeypatch, "gpu", "NVIDIA A100-SXM4-80GB")
    assert row_costs_of(LLAMA, jnp.bfloat16, 1) == RowCosts(LLAMA, RATES["A100"], tiles=GPU_TILES)
    device(monkeypatch, "gpu", "NVIDIA GeForce RTX 4090")
    assert row_costs_of(LLAMA, jnp.bfloat16, 1) is None
