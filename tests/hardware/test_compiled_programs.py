"""Large arrays, registers and launches of compiled programs, by text that a compiler wrote."""

import re

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from tokenswift_jax.hardware import (
    launches,
    ptx,
)
from tokenswift_jax.hardware.copies import large_arrays


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
