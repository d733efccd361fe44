"""Bytes that a compiled program moves, counted from its text: of programs compiled here, and of what devices have."""

import jax
import jax.numpy as jnp
import pytest

from tokenswift_jax.hardware import large_arrays, moved_bytes
from tokenswift_jax.hardware.traffic import iteration_bytes

F32 = 4


def moved(function, *shapes, donate=()):
    arguments = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in shapes]
    return moved_bytes(jax.jit(function, donate_argnums=donate).lower(*arguments).compile().as_text())


def test_a_product_and_a_sum_are_read_once_and_written_once():
    assert moved(lambda x, y: x @ y, ((64, 128), jnp.float32), ((128, 256), jnp.float32)) == F32 * (
        64 * 128 + 128 * 256 + 64 * 256
    )
    assert moved(lambda x: jnp.exp(x) * 2 + 1, ((1000,), jnp.float32)) == 2 * F32 * 1000


def test_of_what_is_sliced_or_updated_in_place_the_part_counts():
    table, row, at = ((4096, 128), jnp.float32), ((1, 128), jnp.float32), ((), jnp.int32)
    taken = moved(lambda table, at: jax.lax.dynamic_slice(table, (at, at), (2, 128)) * 2, table, at)
    assert 2 * F32 * 256 <= taken <= 2 * F32 * 256 + 100  # and indices
    put = moved(lambda table, row, at: jax.lax.dynamic_update_slice(table, row, (at, at)), table, row, at, donate=0)
    assert 2 * F32 * 128 <= put <= 2 * F32 * 128 + 100


def test_loops_count_as_often_as_they_turn():
    def turned(turns):
        return moved(lambda x: jax.lax.fori_loop(0, turns, lambda _, y: jnp.sin(y @ y), x), ((64, 64), jnp.float32))

    assert turned(9) - turned(5) == pytest.approx(4 * (turned(5) - turned(4)), rel=0.01)
    assert turned(9) - turned(5) >= 4 * 4 * F32 * 64 * 64


PROGRAM = """HloModule chunk

%fused_put (param_0.1: bf16[2,4096,128], param_1.1: bf16[1,1,128], param_2.1: s32[]) -> bf16[2,4096,128] {
  %param_0.1 = bf16[2,4096,128]{2,1,0} parameter(0)
  %param_1.1 = bf16[1,1,128]{2,1,0} parameter(1)
  %param_2.1 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = bf16[2,4096,128]{2,1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2.1)
}

%fused_pair (param_0.2: f32[1000]) -> (f32[1000], f32[10]) {
  %param_0.2 = f32[1000]{0} parameter(0)
  %negate.1 = f32[1000]{0} negate(%param_0.2)
  %slice.1 = f32[10]{0} slice(%param_0.2), slice={[0:10]}
  ROOT %tuple.9 = (f32[1000]{0}, f32[10]{0}) tuple(%negate.1, %slice.1)
}

%view (param_0.8: f32[64,128]) -> f32[64,128] {
  %param_0.8 = f32[64,128]{1,0} parameter(0)
  ROOT %bitcast.8 = f32[64,128]{1,0} bitcast(%param_0.8)
}

%fused_view (param_0.9: f32[64,128]) -> f32[64] {
  %param_0.9 = f32[64,128]{1,0} parameter(0)
  %fusion.9 = f32[64,128]{1,0} fusion(%param_0.9), kind=kLoop, calls=%view
  ROOT %reduce.9 = f32[64]{0} reduce(%fusion.9, %zero), dimensions={1}, to_apply=%sum
}

%nested (param_0.6: f32[64,128], param_1.6: s32[]) -> f32[2,128] {
  %param_0.6 = f32[64,128]{1,0} parameter(0)
  %param_1.6 = s32[] parameter(1)
  ROOT %dynamic-slice.6 = f32[2,128]{1,0} dynamic-slice(%param_0.6, %param_1.6, %param_1.6), dynamic_slice_sizes={2,128}
}

%fused_part (param_0.7: f32[64,128], param_1.7: s32[]) -> f32[2,128] {
  %param_0.7 = f32[64,128]{1,0} parameter(0)
  %param_1.7 = s32[] parameter(1)
  %fusion.7 = f32[2,128]{1,0} fusion(%param_0.7, %param_1.7), kind=kLoop, calls=%nested
  ROOT %negate.7 = f32[2,128]{1,0} negate(%fusion.7)
}

%seldom (p.3: (f32[1000])) -> (f32[1000]) {
  %p.3 = (f32[1000]{0}) parameter(0)
  %get-tuple-element.3 = f32[1000]{0} get-tuple-element(%p.3), index=0
  %copy.3 = f32[1000]{0} copy(%get-tuple-element.3)
  ROOT %tuple.3 = (f32[1000]{0}) tuple(%copy.3)
}

%unknown (p.5: (f32[1000])) -> pred[] {
  %p.5 = (f32[1000]{0}) parameter(0)
  ROOT %custom-call.5 = pred[] custom-call(%p.5), custom_call_target="Unknown"
}

%counted (p.6: (s32[], f32[1000])) -> pred[] {
  %constant.6 = s32[]{:T(128)} constant(7)
  %p.6 = (s32[]{:T(128)}, f32[1000]{0}) parameter(0)
  %get-tuple-element.6 = s32[]{:T(128)} get-tuple-element(%p.6), index=0
  ROOT %lt.6 = pred[]{:T(512)} compare(%get-tuple-element.6, %constant.6), direction=LT
}

%iteration (p.4: (bf16[2,4096,128], f32[1000])) -> (bf16[2,4096,128], f32[1000]) {
  %p.4 = (bf16[2,4096,128]{2,1,0}, f32[1000]{0}) parameter(0)
  %cache = bf16[2,4096,128]{2,1,0} get-tuple-element(%p.4), index=0
  %x = f32[1000]{0} get-tuple-element(%p.4), index=1
  %weights = bf16[64,128]{1,0} constant({...})
  %near = (bf16[64,128]{1,0}, bf16[64,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%weights)
  %near-done = bf16[64,128]{1,0:T(8,128)S(1)} copy-done(%near)
  %row = bf16[1,1,128]{2,1,0} constant({...})
  %at = s32[] constant(3)
  %put = bf16[2,4096,128]{2,1,0} fusion(%cache, %row, %at), kind=kLoop, calls=%fused_put
  %pair = (f32[1000]{0:S(1)}, f32[10]{0}) fusion(%x), kind=kLoop, calls=%fused_pair
  %table = f32[64,128]{1,0} constant({...})
  %part = f32[2,128]{1,0:S(1)} fusion(%table, %at), kind=kLoop, calls=%fused_part
  %viewed = f32[64]{0:S(1)} fusion(%table), kind=kLoop, calls=%fused_view
  %kernel = f32[1000]{0} custom-call(%cache, %x), custom_call_target="tpu_custom_call"
  %one = (f32[1000]{0}) tuple(%kernel)
  %rare = (f32[1000]{0}) while(%one), condition=%unknown, body=%seldom
  ROOT %tuple.4 = (bf16[2,4096,128]{2,1,0}, f32[1000]{0}) tuple(%put, %kernel)
}

ENTRY %main (cache.1: bf16[2,4096,128], x.1: f32[1000]) -> (bf16[2,4096,128], f32[1000]) {
  %cache.1 = bf16[2,4096,128]{2,1,0} parameter(0)
  %x.1 = f32[1000]{0} parameter(1)
  %tuple.5 = (bf16[2,4096,128]{2,1,0}, f32[1000]{0}) tuple(%cache.1, %x.1)
  ROOT %while.5 = (bf16[2,4096,128]{2,1,0}, f32[1000]{0}) while(%tuple.5), condition=%unknown, body=%iteration
}
"""


def test_an_iteration_counts_once_and_without_kernels_or_on_chip_memory():
    """Weights brought near are read once; a row is written to the cache; of the pair's first result nothing leaves the
    chip; a fusion in another takes two rows, one looks at all; the kernel and the loop inside cost nothing."""
    near = 2 * 64 * 128
    put = 2 * 2 * 128 + F32  # read, written, and where to
    pair = F32 * 1000 + F32 * 10
    part = F32 * 2 * 128 + F32
    viewed = F32 * 64 * 128
    assert moved_bytes(PROGRAM) == near + put + pair + part + viewed
    assert iteration_bytes(PROGRAM) == moved_bytes(PROGRAM)


def test_an_iteration_leaves_out_what_comes_before_its_loop():
    before = "  %x.1 = f32[1000]{0} parameter(1)\n"
    copied = PROGRAM.replace(before + "  %tuple.5", f"{before}  %copy.1 = f32[1000]{{0}} copy(%x.1)\n  %tuple.5")
    assert moved_bytes(copied) == moved_bytes(PROGRAM) + 2 * F32 * 1000
    assert iteration_bytes(copied) == iteration_bytes(PROGRAM)
    text = jax.jit(jnp.exp).lower(jax.ShapeDtypeStruct((1000,), jnp.float32)).compile().as_text()
    assert iteration_bytes(text) == moved_bytes(text) == 2 * F32 * 1000, "no loop"


def test_a_loop_of_a_tpu_turns_as_often_as_its_condition_says():
    """XLA for TPU writes the number of turns nowhere else."""
    counted = PROGRAM.replace("while(%one), condition=%unknown", "while(%one), condition=%counted")
    assert moved_bytes(counted) - moved_bytes(PROGRAM) == 7 * 2 * F32 * 1000


@pytest.mark.parametrize(
    "named", ["true_computation=%large, false_computation=%small", "branch_computations={%small, %large}"]
)
def test_of_branches_the_one_that_moves_more_counts(named):
    text = f"""%large (x.1: f32[1000]) -> f32[1000] {{
  %x.1 = f32[1000]{{0}} parameter(0)
  ROOT %negate.1 = f32[1000]{{0}} negate(%x.1)
}}

%small (x.2: f32[1000]) -> f32[1000] {{
  ROOT %x.2 = f32[1000]{{0}} parameter(0)
}}

ENTRY %main (x: f32[1000], p: pred[]) -> f32[1000] {{
  %x = f32[1000]{{0}} parameter(0)
  %p = pred[] parameter(1)
  ROOT %either = f32[1000]{{0}} conditional(%p, %x, %x), {named}
}}
"""
    assert moved_bytes(text) == 2 * F32 * 1000


def test_a_line_of_an_attribute_that_starts_with_braces_does_not_end_a_program():
    """Kernels of libraries carry notes of several lines."""
    text = """ENTRY %main (x: f32[64,1024]) -> f32[64,1024] {
  %x = f32[64,1024]{1,0} parameter(0)
  %kernel = f32[64,1024]{1,0} custom-call(%x), custom_call_target="kernel", frontend_attributes={kernel_metadata={
"notes":"{\\"block\\": 512}"
}}, metadata={op_name="kernel"}
  ROOT %copy = f32[64,1024]{0,1} copy(%kernel)
}
"""
    assert moved_bytes(text) == 2 * F32 * 64 * 1024
    assert large_arrays(text, 1024) == ["copy f32[64,1024]", "custom-call f32[64,1024]"]
    with pytest.raises(ValueError, match="computation main of the compiled program has no result"):
        moved_bytes(text.replace("ROOT ", ""))
