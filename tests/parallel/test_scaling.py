"""The expected time of steps on meshes against measured ones, the collectives of programs, and the scaling table."""

import json
from pathlib import Path

import pytest

from tokenswift_jax.hardware.collectives import collectives_of
from tokenswift_jax.hardware.machines import MACHINES
from tokenswift_jax.hardware.page import fill
from tokenswift_jax.hardware.scaling import Program, extended
from tokenswift_jax.hardware.scaling_report import as_table, prefill_ceiling, prefill_table, times
from tokenswift_jax.hardware.shapes import config_of
from tokenswift_jax.parallel.device_rates import RATES, rates_of
from tokenswift_jax.parallel.mesh_choice import plain_collectives
from tokenswift_jax.parallel.mesh_spec import parse_mesh
from tokenswift_jax.parallel.step_time import MESH_RATES, Collective, mesh_rates_of, step_time

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks" / "2026-11-28-scaling.json").read_text(encoding="utf-8"))


def gpt_fast(devices, layers, size, inner, kv_size, vocab=32000):
    """Seconds a token of Llama-2 in bfloat16: gpt-fast splits the layers, with two sums each, and not the LM head."""
    layer = 2 * size * (size + kv_size) + 3 * size * inner
    bytes_ = 2 * layers * layer / devices + 2 * vocab * size
    sums = [Collective("all-reduce", 2 * size, devices, 2 * layers)] if devices > 1 else []
    return step_time(MESH_RATES["A100"], bytes_, sums).total


def test_gpt_fast_s_times_come_out_of_the_formula():
    """Tokens a second on A100s with 80 GB, batch 1 (github.com/pytorch-labs/gpt-fast, README)."""
    measured = {1: 104.9, 2: 168.84, 4: 254.02, 8: 328.43}
    found = {devices: gpt_fast(devices, 32, 4096, 11008, 4096) for devices in measured}
    for devices, speed in measured.items():
        assert found[devices] == pytest.approx(1 / speed, rel=0.01)
    assert round(measured[8] / measured[1], 1) == round(found[1] / found[8], 1) == 3.1
    # A model that is in no constant of the formula.
    for devices, speed in {2: 21.32, 4: 38.01, 8: 62.5}.items():
        assert gpt_fast(devices, 80, 8192, 28672, 1024) == pytest.approx(1 / speed, rel=0.12)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v5 lite", "v5 lite"), ("TPU v5e", "v5 lite"), ("TPU v6 lite", "v6")],
)
def test_a_chip_has_its_rates_under_each_name(kind, name):
    """JAX's kernels know these names of the same chips."""
    assert rates_of(kind) == RATES[name]
    assert mesh_rates_of(kind, "tpu") is MESH_RATES[name]
    assert rates_of("TPU v4") is None


def test_a_sum_of_many_bytes_takes_the_time_of_its_bytes():
    links = MESH_RATES["H200"].links
    (large,) = [Collective("all-reduce", 2**30, 8, 1)]
    time = step_time(MESH_RATES["H200"], 0, [large])
    assert time.sending == pytest.approx(2 * 7 / 8 * 2**30 / 450e9)
    gather = step_time(MESH_RATES["H200"], 0, [large._replace(kind="all-gather")])
    assert gather.sending == pytest.approx(time.sending / 2)
    assert gather.latency == pytest.approx(links.gather * time.latency)
    ring = MESH_RATES["v5 lite"]
    assert step_time(ring, 0, [large._replace(bytes=0)]).latency == pytest.approx(8e-6)  # 4 hops there, 4 back


PROGRAM = """HloModule chunk, num_partitions=8

%layer (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  ROOT %all-reduce.1 = f32[4]{0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}
}

%small (p: f32[4]) -> f32[4] {
  ROOT %p = f32[4] parameter(0)
}

%large (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  ROOT %slice = f32[4]{0} slice(%done), slice={[0:4]}
}

%seldom (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  ROOT %all-reduce.2 = (f32[4]{0}, bf16[2]{0}) all-reduce(%p, %p), replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

%iteration (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  %while.2 = f32[4] while(%p), condition=%c, body=%layer, backend_config={"known_trip_count":{"n":"10"}}
  %cond = f32[4] conditional(%q, %while.2, %while.2), true_computation=%small, false_computation=%large
  ROOT %while.3 = f32[4] while(%cond), condition=%c, body=%seldom
}

%c (p: f32[4]) -> pred[] {
  %p = f32[4] parameter(0)
  ROOT %less = pred[] custom-call(%p), custom_call_target="less"
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  %before = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %while.1 = f32[4] while(%before), condition=%c, body=%iteration
}
"""


def test_collectives_of_an_iteration_count_as_often_as_their_loops_turn():
    assert collectives_of(PROGRAM) == [
        Collective("all-gather", 128, 8, 1),
        Collective("all-reduce", 16, 4, 10),
        Collective("all-reduce", 20, 2, 1),
    ]


def test_figures_of_two_depths_are_extended():
    once, layer = Collective("all-gather", 64, 8, 1), Collective("all-reduce", 8192, 8, 9)
    shallow = Program(4, 100, 1000, (once, layer))
    deep = Program(8, 120, 1800, (once, layer._replace(count=17)))
    assert extended(shallow, deep, 80) == Program(80, 480, 16200, (once, layer._replace(count=161)))


def test_the_mesh_auto_counts_collectives_as_programs_have_them():
    """`auto` weighs plain steps by a formula; the table's rows come from compiled programs."""
    plain = [row for row in ROWS if row["step"] == "plain"]
    assert len(plain) >= 40
    for row in plain:
        spec, config = parse_mesh(row["mesh"]), config_of(row["model"])
        weighed = plain_collectives(config, 2, spec)
        assert row["count"] == pytest.approx(sum(each.count for each in weighed), abs=2), row["machine"]
        assert row["sent_bytes"] == pytest.approx(sum(each.count * each.bytes for each in weighed), rel=0.05)


@pytest.mark.parametrize(
    ("model", "mesh", "kind", "saved", "spent"),
    [
        ("Llama-3.1-8B", "context=4", "H200", 0.60, 1.22),
        ("Llama-3.1-8B", "context=4", "v5 lite", 2.89, 0.20),
        ("Qwen2.5-7B", "model=4,context=2", "H200", 0.06, 0.49),
        ("Qwen2.5-7B", "model=4,context=2", "v5 lite", 0.29, 0.14),
    ],
)
def test_the_page_says_what_attention_s_weights_over_context_would_save_and_spend(model, mesh, kind, saved, spent):
    """In milliseconds a step: a gather of queries, keys and values more a layer, and a wider sum."""
    config, spec, rates = config_of(model), parse_mesh(mesh), MESH_RATES[kind]
    columns = config.head_dim * (config.num_heads + 2 * config.num_kv_heads) // spec.model
    weights = config.num_layers * 2 * config.hidden_size * (columns + config.head_dim * config.num_heads // spec.model)

    def of_sum(devices):
        return step_time(rates, 0, [Collective("all-reduce", 2 * config.hidden_size, devices, config.num_layers)]).total

    gathers = step_time(rates, 0, [Collective("all-gather", 2 * columns, spec.context, config.num_layers)]).total
    more = gathers + of_sum(spec.model * spec.context) - (of_sum(spec.model) if spec.model > 1 else 0)
    less = step_time(rates, weights * (1 - 1 / spec.context), []).total
    assert (1e3 * less, 1e3 * more) == pytest.approx((saved, spent), abs=0.006)
    if model == "Llama-3.1-8B":
        sent = 2 * config.num_layers * (columns + config.hidden_size)
        assert (weights * 3 / 4 / 1e9, sent / 1e3) == pytest.approx((2.0, 655), rel=0.01)


def test_every_row_of_the_issue_s_machines_is_in_the_table():
    asked = {(row["machine"], row["model"], row["positions"]) for row in ROWS if row["step"] == "plain"}
    for machine in ("v5e-8", "v5p-8", "v6e-4", "8x A100", "8x H200"):
        for model in ("Llama-3.1-8B", "Qwen2.5-14B", "Qwen2.5-32B", "Llama-3.1-70B"):
            assert {(machine, model, 131072), (machine, model, 1048576)} <= asked
    assert all(row["devices"] == MACHINES[row["machine"]].devices for row in ROWS)


def test_the_page_has_the_tables_of_the_rows():
    page = (ROOT / "docs" / "meshes.md").read_text(encoding="utf-8")
    assert fill(fill(page, "scaling", as_table(ROWS)), "prefill", prefill_table()) == page
    assert all(row | times(row) == row for row in ROWS)


def test_no_eight_devices_prefill_as_fast_as_is_claimed():
    config, h200 = config_of("Yarn-Llama-2-7B"), MESH_RATES["H200"]
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert prefill_ceiling(config, h200, 8) == pytest.approx(8 * 989e12 / (2 * weights))
    assert max(prefill_ceiling(config, rates, 8) for rates in MESH_RATES.values()) < 0.52 * 1.2e6
    assert prefill_ceiling(config, h200, 8, 131072) < 0.3 * prefill_ceiling(config, h200, 8)
