"""Programs on accelerators: bytes of steps, large arrays in programs, registers, launches, goals, kernels, sections."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import cpu
from pallas_kernels.implementation import compiling_for
from tests import tiny
from tokenswift_jax import hardware
from tokenswift_jax.hardware import (
    clock,
    cpu_step,
    expected_times,
    filled_steps,
    kernel_checks,
    kernel_speed,
    launches,
    profiler,
    ptx,
    replay,
    roofline,
    shapes,
    steps,
    tile_sweep,
    variants,
)
from tokenswift_jax.hardware.copies import large_arrays
from tokenswift_jax.hardware.goals import goals
from tokenswift_jax.hardware.sections import SECTIONS, Check
from tokenswift_jax.hardware.targets import TARGETS
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.sample.features import SamplingFeatures

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/first_contact.py does

from contact import plans


def test_memory_is_read_at_about_the_speed_of_copies():
    copied = clock.copy_bandwidth(1 << 26, passes=2)
    assert copied / 20 < clock.read_bandwidth(1, 0.2) < 20 * copied


def test_a_cpus_steps_are_timed_with_their_bytes():
    model = tiny.tiny_model(tiny.tiny_config())
    limit = cpu.ROWS
    found = cpu_step.cpu_steps(model, positions=(16, 40), rows=(1, 3), seconds=0)
    assert limit == cpu.ROWS
    assert [(one.positions, one.rows) for one in found] == [(16, 1), (16, 3), (40, 1), (40, 3)]
    assert all(part > 0 for one in found for part in (*one.numba, *one.xla))
    a_position = 2 * 2 * 2 * 8 * 4  # K and V, 2 layers, 2 KV heads, 8 numbers of 4 bytes
    assert found[2].cost.bytes - found[0].cost.bytes == 24 * a_position
    plain = roofline.step_cost("plain", model.config, 16, itemsize=4)
    assert (found[0].cost.bytes, found[0].cost.operations) == (plain.bytes, plain.operations)
    products = cpu_step.numpy_products(model.config, (1, 3), rounds=1)
    assert set(products) == {1, 3}
    assert min(products.values()) > 0
    assert clock.product_rate(64, jnp.float32, 1) > 0


@pytest.mark.parametrize("name", shapes.NAMES)
def test_weights_are_counted_as_the_decoder_has_them(name):
    config = shapes.config_of(name)
    made = nnx.eval_shape(lambda: Decoder(config, dtype=jnp.dtype(jnp.bfloat16), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.split(made)[1])
    vectors = sum(leaf.size * 2 for leaf in leaves if leaf.ndim == 1)  # norms and biases: not counted
    assert roofline.parameter_bytes(config) == sum(leaf.size * 2 for leaf in leaves) - vectors


def test_a_plain_step_of_llama_reads_its_weights_its_cache_and_little_else():
    config = shapes.config_of("Llama-3.1-8B")
    short, long = (roofline.step_cost("plain", config, length) for length in (0, 16384))
    # 8.03e9 parameters without the embedding table (1 row of it is read) and the norms.
    weights = 2 * (32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) + 4096 * 128256)
    assert short.bytes == weights + 32 * 2 * 8 * 128 * 2 + 8 * 128256
    assert long.bytes - short.bytes == 16384 * 131072  # 128 KiB a position
    assert short.operations == weights + 4 * 32 * 32 * 128
    h200 = TARGETS["h200"]
    assert long.seconds(h200, 1) == pytest.approx(long.bytes / 4.8e12)
    assert long.seconds(h200, 4) == pytest.approx(long.bytes / 4.8e12 / 4)
    prefill = roofline.step_cost("prefill", config, 0)
    assert prefill.seconds(h200, 1) == pytest.approx(prefill.operations / 989e12), "a chunk is bound by arithmetic"


def test_a_part_that_is_bound_by_arithmetic_leaves_no_bytes_to_the_others():
    """64 rows of 4 query heads a KV head: each byte of the cache is multiplied more often than an H200 has time for."""
    config, length = shapes.config_of("Llama-3.1-8B"), 126976
    cost, h200 = roofline.step_cost("verify-64", config, length), TARGETS["h200"]
    attention = 4 * 32 * 32 * 128 * 64 * (length + 64)
    cache = (length + 64) * 131072
    assert attention / 989e12 > cache / 4.8e12
    assert cost.seconds(h200, 1) == pytest.approx(attention / 989e12 + (cost.bytes - cache) / 4.8e12)
    assert cost.seconds(h200, 1) > 1.1 * max(cost.bytes / 4.8e12, cost.operations / 989e12)


@pytest.mark.parametrize("name", [name for name in steps.STEPS if name != "draft"])
def test_every_step_has_a_cost(name):
    config = shapes.config_of("tiny")
    costs = [roofline.step_cost(name, config, length) for length in (100, 200)]
    assert 0 < costs[0].bytes < costs[1].bytes
    assert costs[0].operations < costs[1].operations


def test_top_k_and_top_p_are_in_a_step_of_their_own():
    config = shapes.config_of("tiny")
    plain, top = (steps.plan_named(name, config) for name in ("verify-16", "verify-16-topkp"))
    assert (plain.features, top.features) == (SamplingFeatures.SAMPLED, SamplingFeatures.FILTERED)
    assert plain.tree == top.tree
    inputs, _ = steps.first_call(top, None, jnp.dtype(jnp.float32), 1, 512)
    asked = inputs.sequence
    assert (int(asked.top_k[0]), round(float(asked.top_p[0]), 3), float(asked.min_p[0])) == (20, 0.8, 0.0)
    cost = [roofline.step_cost(name, config, 100) for name in ("verify-16", "verify-16-topkp")]
    assert cost[0] == cost[1], "draws read no more of the model"


def test_the_lm_head_is_read_once_where_heads_and_rows_share_it():
    config, rows, heads = shapes.config_of("Llama-3.1-8B"), 16, 3
    head = 2 * 4096 * 128256
    shared = roofline.step_cost("verify-16", config, 0)
    plain = roofline.step_cost("plain", config, 0).bytes - 2 * 4 * 128256 - 32 * 2 * 2 * 8 * 128
    lines = rows * (1 + heads)
    logits = 4 * 128256 * (lines + rows + 3 * heads)  # all written, the draws' read, one row's heads chosen and read
    assert shared.bytes == plain + heads * 2 * 4096**2 + rows * 32 * 2 * 2 * 8 * 128 + logits
    assert roofline.chunk_cost("verify-16", config).bytes == head + heads * 2 * 4096**2 + 4 * heads * 128256
    assert roofline.chunk_cost("verify-64", config).bytes == roofline.chunk_cost("plain", config).bytes == 0
    assert roofline.step_cost("verify-64", config, 0).bytes > plain + head, "256 rows are more than 128"


@pytest.mark.parametrize(("one_pass", "rows"), [(True, [64]), (False, [3, 16])])
def test_products_with_the_lm_head_in_an_iteration(one_pass, rows):
    config = shapes.config_of("tiny")
    step = steps.step_named("verify-16", config, 512, jnp.float32, one_pass=one_pass)
    with compiling_for("gpu"):  # a CPU's products of few rows are Numba's
        traced = jax.make_jaxpr(step.function)(*step.arguments)
    loop = next(each for each in operations(traced.jaxpr) if each.primitive.name == "while")
    products = [each for each in operations(loop.params["body_jaxpr"].jaxpr) if each.primitive.name == "dot_general"]
    made = [each.outvars[0].aval for each in products]
    assert sorted(one.size // config.vocab_size for one in made if one.shape[-1] == config.vocab_size) == rows


def operations(jaxpr):
    """All operations, those within loops and calls included."""
    for each in jaxpr.eqns:
        yield each
        for inner in jax.extend.core.jaxprs_in_params(each.params):
            yield from operations(inner)


def test_expected_times_are_near_those_of_an_h200():
    """Steps of an 8B as they were when an H200 ran them; a 1.5B's products took longer there than their bytes."""
    config = shapes.config_of("Llama-3.1-8B")
    measured = {"plain": (4.92, 5.23, 6.71, 8.52), "verify-16": (5.58, 6.01, 7.61, 9.58)}
    for step, times in measured.items():
        nodes = expected_times.BEFORE["Llama-3.1-8B", step]
        for length, milliseconds in zip(expected_times.LENGTHS, times, strict=True):
            at_that_time = {"nodes": nodes, "joined": False, "one_pass": False}
            found = 1e3 * expected_times.expected_seconds("H200", config, step, length, **at_that_time)
            assert found == pytest.approx(milliseconds, rel=0.02)


def test_verification_costs_rows_and_partial_drafting_a_second_pass():
    config = shapes.config_of("Qwen2.5-7B")
    plain, narrow, wide, both = (
        roofline.step_cost(name, config, 65536).bytes for name in ("plain", "verify-16", "verify-64", "partial-16")
    )
    assert plain < narrow < wide < 1.1 * plain
    assert both - narrow == pytest.approx(roofline.step_cost("plain", config, 4096).bytes, rel=0.1)


def compiled(function, *shapes_of):
    return jax.jit(function, donate_argnums=0).lower(*shapes_of).compile().as_text()


def test_updates_in_place_are_no_copies_and_copies_are_found():
    cache, rows = jax.ShapeDtypeStruct((8, 4096), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)

    def write(cache, rows):
        return jax.lax.dynamic_update_slice(cache, rows, (0, 0))

    size = 8 * 4096 * 4
    assert large_arrays(compiled(write, cache, rows), size) == []
    both = compiled(lambda cache, rows: (write(cache, rows), cache[::-1]), cache, rows)
    assert any(entry.endswith("f32[8,4096]") for entry in large_arrays(both, size))
    assert large_arrays(both, size + 1) == []


def test_registers_are_those_of_the_kernels_asked_for(tmp_path, monkeypatch):
    output = """ptxas info    : Compiling entry function 'tree_attention_1' for 'sm_80'
ptxas info    : Function properties for tree_attention_1
    8 bytes stack frame, 136 bytes spill stores, 140 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
ptxas info    : Compiling entry function 'fusion_7' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers
"""
    assembler = tmp_path / "ptxas"
    assembler.write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{output}E\n")
    assembler.chmod(0o755)
    (tmp_path / "module.ptx").touch()
    monkeypatch.setattr(ptx, "_assembler", lambda: assembler)
    found = ptx.kernel_registers(tmp_path, "sm_80", ("tree_attention",))
    assert found == {"tree_attention_1": {"registers": 255, "spilled_bytes": 136}}
    with pytest.raises(LookupError, match=f"{tmp_path} holds no PTX of sparse_attention or cache_scores"):
        ptx.kernel_registers(tmp_path, "sm_80", ("sparse_attention", "cache_scores"))
    (tmp_path / "module.ptx").unlink()
    with pytest.raises(LookupError):
        ptx.kernel_registers(tmp_path, "sm_80", ("tree_attention",))


THUNKS = """001: kCopy         [source       | next=004 (3)] kCopy
002: kWhile        [prev=001 (1) | next=066 (1)]   
condition:
    003: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=046 (1)] 
        004: kCopy         [source        | next=007 (1) ] kCopy
        005: kCustomKernel [prev=006 (1)  | sink         ] tree_attention grid: [1, 33, 8]
    006: kWhile         [prev=000 (1) | next=000 (1)]       
condition:
        007: kCustomKernel [source | sink] known
      body:
        000: kCommandBuffer [source | sink] 
            008: kCustomKernel [source | sink] input_reduce_fusion
            009: kCustomKernel [source | sink] input_reduce_fusion
    010: kWhile         [prev=000 (1) | next=000 (1)]       
condition:
        No thunks.      body:
        000: kCommandBuffer [source | sink] 
            011: kCustomKernel [source | sink] seldom
        012: kWhile         [prev=000 (1) | next=000 (1)]       
condition:
            013: kCustomKernel [source | sink] seldom
          body:
            014: kCustomKernel [source | sink] seldom
    000: kCommandBuffer [prev=216 (1) | sink        ] 
        015: kCustomKernel [source | sink] loop_add_fusion
016: kCopy         [prev=004 (1) | sink        ] kCopy
"""
PROGRAM = """HloModule chunk

%rare_inside (p: s32[]) -> s32[] {
  ROOT %p = s32[] parameter(0)
}

%rare (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %while.4 = s32[] while(%p), condition=%c, body=%rare_inside
}

%search (p: s32[]) -> s32[] {
  ROOT %p = s32[] parameter(0)
}

%iteration (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %while.2 = s32[] while(%p), condition=%c, body=%search, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %while.3 = s32[] while(%while.2), condition=%c, body=%rare
}

ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %while.1 = s32[] while(%p), condition=%c, body=%iteration
}
"""


def test_launches_are_those_of_one_iteration():
    """The condition, 2 + 1 nodes of two graphs, 10 turns of a graph of 2, and no kernel of the loop that seldom turns;
    the host waits for the outer loop's condition and for that one's."""
    assert launches.count_launches(THUNKS, PROGRAM) == launches.Launches(
        nodes=1 + 2 + 10 * 2 + 1, graphs=1 + 10 + 1, waits=2
    )


BRANCHES = """000: kWhile         [source | sink]   
condition:
    001: kCustomKernel [source | sink] loop_and_fusion
  body:
    002: kConditional   [prev=000 (1) | next=091 (1)]       
      false_branch:
        003: kCopy          [source       | next=049 (2)] kCopy
        004: kWhile         [prev=048 (1) | next=000 (1)]           
condition:
            005: kCustomKernel [source | sink] known
          body:
            000: kCommandBuffer [source | sink] 
                006: kCustomKernel [source | sink] input_reduce_fusion
                007: kConditional  [prev=095 (3) | next=102 (1)]               
                  false_branch:
                    008: kCustomKernel [source | sink] input_reduce_fusion
                  true_branch:
                    009: kCopy [source | sink] kCopy
                    010: kCopy [source | sink] kCopy
                011: kCustomKernel [source | sink] input_reduce_fusion
      true_branch:
        012: kCopy [source | sink] kCopy
    013: kConditional   [prev=000 (1) | next=091 (1)]       
      branch_0:
        No thunks.      branch_1:
        014: kCopy [source | sink] kCopy
    015: kCopy [source | sink] kCopy
"""
BRANCHED = """HloModule chunk

%search (p: s32[]) -> s32[] {
  ROOT %p = s32[] parameter(0)
}

%needed (p: s32[]) -> s32[] {
  ROOT %while.2 = s32[] while(%p), condition=%c, body=%search, backend_config={"known_trip_count":{"n":"3"}}
}

%not_needed (p: s32[]) -> s32[] {
  ROOT %p = s32[] parameter(0)
}

%iteration (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %cond.1 = s32[] conditional(%q, %p, %p), true_computation=%not_needed, false_computation=%needed
  ROOT %cond.2 = s32[] conditional(%p, %p, %p), branch_computations={%search, %not_needed}
}

ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %while.1 = s32[] while(%p), condition=%c, body=%iteration
}
"""


def test_of_branches_the_larger_counts_and_the_host_waits_to_know_which():
    """The condition; a copy and 3 turns of a graph of 2 kernels and the larger branch's 2; a copy; a copy. The host
    waits for the loop and for the two branches that are in no graph."""
    found = launches.count_launches(BRANCHES, BRANCHED)
    assert found == launches.Launches(nodes=1 + 1 + 3 * (2 + 2) + 1 + 1, graphs=3, waits=3)
    with pytest.raises(ValueError, match="2 loops among its thunks and 1 in the program"):
        launches.count_launches(BRANCHES, BRANCHED.replace("while(%p), condition=%c, body=%search", "add(%p, %p)"))


def test_a_loop_within_a_graph_is_no_launch_of_the_host_and_needs_a_kernel_for_its_condition():
    whole = "000: kCommandBuffer [source | sink] \n" + "".join(f"    {line}\n" for line in THUNKS.splitlines())
    inside = re.sub("kCommandBuffer", "kSequential", whole).replace("kSequential", "kCommandBuffer", 1)
    assert launches.count_launches(inside, PROGRAM) == launches.Launches(nodes=24, graphs=0, waits=0, unordered=1)


@pytest.mark.parametrize(
    ("step", "layers", "found", "good"),
    [
        ("plain", 2, {"nodes": 47, "graphs": 0, "waits": 0}, True),
        ("plain", 2, {"nodes": 48, "graphs": 0, "waits": 0}, False),
        ("verify-16-topkp", 2, {"nodes": 97, "graphs": 0, "waits": 0}, True),
        ("verify-16-topkp", 2, {"nodes": 98, "graphs": 0, "waits": 0}, False),
        ("plain", 2, {"nodes": 40, "graphs": 1, "waits": 1}, False),
        ("plain", 2, {"nodes": 40, "graphs": 1, "waits": 0}, False),
        ("plain", 28, {"nodes": 700, "graphs": 1, "waits": 1}, True),
        ("prefill", 2, {"nodes": 700, "graphs": 1, "waits": 1}, True),
        ("plain", 2, None, True),
    ],
)
def test_launches_have_the_counted_limits(step, layers, found, good):
    from tokenswift_jax.hardware.aot import few_launches

    assert few_launches("Qwen2.5-1.5B", step, layers, found) == good
    assert few_launches("Qwen2.5-7B", step, layers, found), "nobody counted this one"


def test_launches_are_read_from_what_xla_dumps(tmp_path):
    assert launches.dumped_launches(tmp_path) is None
    (tmp_path / "module_0001.jit_f.thunk_sequence_after_thunk_passes.txt").write_text(THUNKS)
    (tmp_path / "module_0001.jit_f.sm_9.0a_gpu_after_optimizations.txt").write_text(PROGRAM)
    assert launches.dumped_launches(tmp_path, "jit_f") == launches.count_launches(THUNKS, PROGRAM)
    assert launches.dumped_launches(tmp_path, "jit_g") is None


def test_a_replayed_text_sums_the_steps_at_every_length():
    points = [(10, 1.0), (20, 2.0)]
    assert replay.integral(points, 10) == pytest.approx(10.0)  # level before the first
    assert replay.integral(points, 21) == pytest.approx(10 + np.linspace(1, 2, 11).sum())
    assert replay.integral(points, 31) == pytest.approx(10 + np.linspace(1, 2, 11).sum() + 20)


@pytest.fixture
def check():
    """Settings of sections with tiny shapes after 300 tokens."""
    settings = plans.settings_of(plans.Stage("here", (), 30), small=True)
    settings |= {"steps": ("plain", "verify-16", "prefill"), "lengths": (300,), "capacity": 2560}
    settings |= {"copied_bytes": 10**6, "demo_tokens": 40}
    return Check(**settings, earlier=[], report=lambda line: None)


@pytest.mark.long
def test_the_sections_run_here(check):
    (copied,) = SECTIONS["copy"](check)
    assert copied["bytes_a_second"] > 1e6
    assert copied["operations_a_second"] > 1e6
    check.earlier.append({"section": "copy"} | copied)
    rows = list(SECTIONS["steps"](check))
    assert [row["tokens_a_pass"] for row in (rows[0], rows[2])] == [1.0, steps.ACCELERATOR_ROWS]
    profiled = list(SECTIONS["profile"](check))
    for row in rows:
        expected = row["bytes"] / (row["milliseconds"] / 1e3) / copied["bytes_a_second"]
        assert row["of_copy_bandwidth"] == pytest.approx(expected)
        least = row["bytes"] / copied["bytes_a_second"]
        assert row["floor_milliseconds"] >= 1e3 * least * (1 - 1e-9)
        about, *operations = [found for found in profiled if found["step"] == row["step"]]
        assert about["milliseconds"] > 0
        assert about["busy_milliseconds"] > 0
        assert len(operations) == profiler.TOP
        assert operations[0]["microseconds_a_pass"] >= operations[-1]["microseconds_a_pass"] > 0
        assert any(operation["origin"] for operation in operations)
    timed = [{"section": "steps", "model": "tiny", **row} for row in rows]
    assert all("missing" in row for row in goals(timed)), "nothing was timed after 16,384 tokens"
    replayed = {
        (row["step"], row["acceptance_rate"]): row["seconds"] for row in replay.replayed(timed, "tiny", 1000, [0.6])
    }
    assert replayed["plain", 0.0] == pytest.approx(rows[0]["milliseconds"])  # 1,000 tokens at one measured length
    assert replayed["verify-16", 0.6] == pytest.approx(rows[1]["milliseconds"] / (1 + 3 * 0.6))
    texts = list(SECTIONS["demo"](check))
    assert [row["leading_tokens_of_the_first"] for row in texts] == [40, 40, 40]
    assert not any(row["audit_failed"] for row in texts)
    assert [row["tokens_a_pass"] > 1.5 for row in texts] == [False, True, True], "drafts were verified"


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


@pytest.fixture
def small_cases(monkeypatch):
    monkeypatch.setattr(kernel_checks, "SHAPES", ((4, 16),))
    monkeypatch.setattr(kernel_checks, "CAPACITY", 320)
    monkeypatch.setattr(kernel_checks, "LENGTHS", (300, 70))
    monkeypatch.setattr(kernel_checks, "BEST", 90)
    monkeypatch.setattr(kernel_checks, "CHUNK", 20)


def test_kernels_are_compared_with_their_definitions(small_cases):
    rows = list(kernel_checks.check_kernels(jnp.dtype(jnp.float32)))
    kernels = ["tree_attention", "sparse_attention"]
    assert [row["kernel"] for row in rows] == 3 * kernels + ["prefill_attention", "cache_scores"]
    assert all(row["good"] for row in rows)


@pytest.mark.parametrize("kernel", ["tree_attention", "sparse_attention", "prefill_attention", "top_positions"])
def test_a_kernel_that_is_wrong_is_found(kernel, small_cases, monkeypatch):
    """An attention that is off by a thousandth; a selection that misses the best key."""
    right = getattr(kernel_checks, kernel)

    def wrong(queries, *arguments, **options):
        if kernel == "top_positions":
            return right(queries, *arguments, **options | {"count": options["count"] + 1})[..., 1:]
        # The definition is the same function, in float64: it stays right.
        mixed = right(queries, *arguments, **options)
        return mixed * np.float32(1.001) if queries.dtype == np.float32 else mixed

    monkeypatch.setattr(kernel_checks, kernel, wrong)
    found = {row["kernel"] for row in kernel_checks.check_kernels(jnp.dtype(jnp.float32)) if not row["good"]}
    assert found == {"cache_scores" if kernel == "top_positions" else kernel}


def test_kernels_are_timed_for_the_bytes_they_must_read(monkeypatch):
    monkeypatch.setattr(kernel_speed, "LAYERS", 2)
    config = shapes.config_of("tiny")
    rows = list(kernel_speed.by_length(config, (300, 200), jnp.dtype(jnp.float32), bandwidth=1e9))
    position = config.num_kv_heads * config.head_dim * 4  # of keys
    read = {(row["kernel"], row["rows"], row["length"]): row["bytes"] for row in rows}
    assert len(read) == 3 * 2 + 2 * 2 + 2 + 2
    assert read["tree_attention", 64, 300] == 2 * position * 300
    assert read["sparse_attention", 16, 300] == 2 * position * 256
    assert read["cache_scores", 1, 200] == position * 200
    for row in rows:
        assert row["of_copy_bandwidth"] == pytest.approx(row["bytes"] / (row["microseconds"] * 1e-6) / 1e9)


def test_a_kernel_is_compiled_once_for_all_lengths(monkeypatch):
    monkeypatch.setattr(kernel_speed, "LAYERS", 3)
    traced = []
    right = kernel_speed.tree_attention

    def counted(queries, *arguments, **options):
        traced.append(queries.shape[1])
        return right(queries, *arguments, **options)

    monkeypatch.setattr(kernel_speed, "tree_attention", counted)
    config = shapes.config_of("tiny")
    list(kernel_speed.by_length(config, (256, 300, 280), jnp.dtype(jnp.float32), bandwidth=1e9))
    assert sorted(traced) == 3 * [1] + 3 * [16] + 3 * [64]


def test_a_filled_step_continues_its_text():
    model = hardware.random_model(hardware.config_of("tiny"), jnp.dtype(jnp.float32))
    step = hardware.filled_step(model, "plain", 100, 512)
    assert [step.call() for _ in range(2)] == [(filled_steps.ITERATIONS, filled_steps.ITERATIONS)] * 2
    assert int(step.call.func.__self__.state.length[0]) == 100 + 2 * filled_steps.ITERATIONS


def test_steps_are_compiled_in_several_ways(check, monkeypatch):
    programs = {}
    monkeypatch.setattr(variants.jax.stages.Lowered, "compile", _noted(programs, variants.jax.stages.Lowered.compile))
    asked = {"steps": ("plain",), "variants": ("joined", "apart", "padded"), "lengths": (20, 30), "capacity": 512}
    rows = list(variants.time_variants(shapes.config_of("tiny"), dataclasses.replace(check, **asked), ("apart",)))
    timed = [(row["variant"], row["length"]) for row in rows if "bytes" in row]
    assert timed == [(variant, length) for variant in asked["variants"] for length in asked["lengths"]]
    assert len(set(programs.values())) >= 3
    assert {row["variant"] for row in rows if "bytes" not in row} == {"apart"}


def _noted(programs, compile_it):
    def noted(lowered, *arguments, **options):
        programs[len(programs)] = lowered.as_text()
        return compile_it(lowered, *arguments, **options)

    return noted


def test_attention_is_swept(monkeypatch):
    asked = ((4, variants.AttentionSizes()), (1, variants.AttentionSizes((16, 64, 4, 2), 3)))
    monkeypatch.setattr(tile_sweep, "VARIANTS", asked)
    rows = list(tile_sweep.sweep(shapes.config_of("tiny"), (40,), jnp.dtype(jnp.float32), 1e9))
    assert [(row["variant"], row["length"], row.get("good")) for row in rows] == [
        ("present", 40 + tile_sweep.RAGGED, True),
        ("present", 40, None),
        ("16x64x4x2, 3 splits", 40 + tile_sweep.RAGGED, True),
        ("16x64x4x2, 3 splits", 40, None),
    ]


def test_the_scripts_run_where_the_project_is_not_installed():
    """A machine that only has its libraries, and was handed this checkout."""
    root = Path(__file__).resolve().parents[1]
    code = """
import sys
root = sys.argv[1]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
sys.path[:] = [root + "/scripts", *(path for path in sys.path if path not in ("", root))]
import aot_report, contact, tokenswift_jax
print(tokenswift_jax.__file__)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(root)], cwd="/", capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == str(root / "tokenswift_jax" / "__init__.py"), ran.stderr


def test_every_step_is_one_of_the_reports():
    import aot_report

    assert aot_report.STEPS == steps.STEPS
    assert {*aot_report.MODELS, "tiny"} == set(shapes.NAMES)
