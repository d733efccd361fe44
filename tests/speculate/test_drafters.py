"""Drafters: what they keep, what the plans of one engine share, and what that costs."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from speculations import SPECULATIONS

import tokenswift_jax
from tests.engine_fixture import layout_of, settings_of
from tokenswift_jax.arrays import axes_of, check_shapes
from tokenswift_jax.engine.layout import Layout, with_all_parts, with_parts_at
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.kv.draft_blocks import BlockTable
from tokenswift_jax.kv.draft_positions import DraftCache
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.drafter import DraftWeights
from tokenswift_jax.speculate.heads_drafter import HeadsDrafter
from tokenswift_jax.speculate.merged_drafter import Calibration, MergedDrafter
from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.ngram_drafter import NgramDrafter
from tokenswift_jax.speculate.no_drafter import NoDrafter
from tokenswift_jax.speculate.plans import autoregressive_plan, speculative_plans
from tokenswift_jax.speculate.tree import Tree, build
from tokenswift_jax.speculate.tree_spec import ROOT_ALONE
from tokenswift_jax.step.draft import draft_tree
from tokenswift_jax.step.loop import compiled
from tokenswift_jax.step.state import StepInputs

CONFIG, CAPACITY = small_models.config(48), 512
# The state of each mode's drafter, and the weights that it reads.
KEPT = {
    "plain": ((), DraftWeights.NONE),
    "ngram": ((NgramTable,), DraftWeights.NONE),
    "medusa": ((), DraftWeights.HEADS),
    "fused": ((NgramTable, Calibration), DraftWeights.HEADS),
    "partial": ((DraftCache, NgramTable, Calibration), DraftWeights.LAYERS),
    "partial blocks": ((BlockTable, NgramTable, Calibration), DraftWeights.LAYERS),
    "selfspec": ((DraftCache,), DraftWeights.LAYERS),
}


def plans_of(mode):
    """The plans of a mode, plain decoding's where it has no others."""
    found = speculative_plans(CONFIG, SPECULATIONS[mode], SamplingFeatures.SAMPLED, "cpu")
    return [named.plan for named in found or [autoregressive_plan(CONFIG, SamplingFeatures.SAMPLED)]]


def layout(mode):
    return Layout.of(CONFIG, jnp.dtype(jnp.float32), CAPACITY, SamplingFeatures.SAMPLED, plans_of(mode))


@pytest.mark.parametrize("mode", KEPT)
def test_what_a_drafter_keeps(mode):
    (plan,) = plans_of(mode)
    kinds, weights = KEPT[mode]
    parts = jax.eval_shape(lambda: layout_of(plan, jnp.float32, CAPACITY).empty_parts(3))
    assert tuple(map(type, parts)) == kinds
    assert plan.drafter.weights == weights
    for names, leaf in zip(jax.tree.leaves(axes_of(parts)), jax.tree.leaves(parts), strict=True):
        assert not names.names or leaf.shape[names.batch] == 3  # the numbers of layers have no axes


@pytest.mark.parametrize(
    ("mode", "text_alone", "heads_depth", "teacher_forced"),
    [
        ("plain", False, None, NoDrafter()),
        ("ngram", True, None, NgramDrafter(SPECULATIONS["ngram"].ngram_slots)),
        ("medusa", False, 1, HeadsDrafter()),
        ("fused", False, 1, MergedDrafter(HeadsDrafter(), NgramDrafter(SPECULATIONS["fused"].ngram_slots))),
        (
            "partial",
            False,
            2,
            MergedDrafter(HeadsDrafter(backbone=True), NgramDrafter(SPECULATIONS["partial"].ngram_slots)),
        ),
        ("selfspec", False, None, None),
    ],
)
def test_what_others_ask_of_a_drafter(mode, text_alone, heads_depth, teacher_forced):
    (plan,) = plans_of(mode)
    drafter = plan.drafter
    assert (drafter.text_alone, drafter.heads_depth, drafter.teacher_forced) == (
        text_alone,
        heads_depth,
        teacher_forced,
    )
    if teacher_forced is not None:
        assert (teacher_forced.text_alone, teacher_forced.heads_depth) == (text_alone, heads_depth)
        assert teacher_forced.teacher_forced == teacher_forced
    tables = [part for part in drafter.parts if part.takes_predictions]
    assert len(tables) == (NgramTable in KEPT[mode][0])


def test_nobody_asks_for_a_drafter_s_class():
    asked = re.compile(r"isinstance\([^\n]*(Drafter|Part)\b")
    files = Path(tokenswift_jax.__file__).parent.rglob("*.py")
    assert [str(path) for path in files if asked.search(path.read_text(encoding="utf-8"))] == []


def test_the_plans_of_an_engine_share_equal_parts():
    plans, shared = plans_of("auto"), layout("auto")
    assert len(plans) > 1
    assert sorted(type(part).__name__ for part in shared.parts) == [
        "CalibrationPart",
        "DraftCachePart",
        "NgramTablePart",
    ]
    assert {part for plan in plans for part in plan.drafter.parts} == set(shared.parts)


@pytest.mark.parametrize("mode", [*KEPT, "auto"])
def test_the_shapes_of_every_state_are_those_that_its_fields_name(mode):
    state = jax.eval_shape(lambda: layout(mode).vacant(3))
    settings = settings_of(SamplingConfig(), vocab=CONFIG.vocab_size, batch=3)
    check_shapes(state=state, settings=settings)
    check_shapes(state=jax.eval_shape(lambda: replace(layout(mode), cache_dtype="int8").vacant(3)))
    check_shapes(state=jax.eval_shape(lambda: replace(layout(mode), cyclic=Cyclic(2)).vacant(3)))


def test_node_budgets_share_one_program_that_catches_up():
    tried = speculative_plans(CONFIG, replace(SPECULATIONS["auto"], node_budget=None), SamplingFeatures.SAMPLED, "cpu")
    fused = [named.plan for named in tried if named.schedule == "fused"]
    assert len(set(fused)) == len(fused) == 3
    assert len({compiled("catch_up", None, CONFIG, plan.drafter) for plan in fused}) == 1


def test_a_step_takes_its_own_parts_and_leaves_the_others():
    shared = layout("auto")
    state = shared.vacant(2)
    for plan in plans_of("auto") + plans_of("plain"):
        alone = layout_of(plan, jnp.float32, CAPACITY)
        places = shared.places(plan.drafter)
        taken = with_parts_at(state, places)
        assert jax.tree.structure(taken) == jax.tree.structure(jax.eval_shape(lambda alone=alone: alone.vacant(2)))
        moved = jax.tree.map(lambda leaf: leaf + 1, taken.drafter)
        after = with_all_parts(replace(taken, drafter=moved), places, state)
        for part, was, now in zip(shared.parts, state.drafter, after.drafter, strict=True):
            expected = moved[plan.drafter.parts.index(part)] if part in plan.drafter.parts else was
            assert now is expected


def test_plain_decoding_proposes_the_tree_without_nodes():
    assert (ROOT_ALONE.depth, ROOT_ALONE.rows, ROOT_ALONE.slots) == (0, 1, 0)
    (plan,) = plans_of("plain")
    state = layout("plain").vacant(2)
    state = replace(state, tokens=state.tokens.at[:, 0].set(jnp.asarray([7, 30], jnp.int32)))
    inputs = StepInputs(None, settings_of(SamplingConfig(), vocab=CONFIG.vocab_size, batch=2))
    tree, after = draft_tree(None, state, (), inputs, plan, None)
    expected = build(ROOT_ALONE, jnp.asarray([7, 30], jnp.int32), [])
    for name in Tree.__dataclass_fields__:
        built, proposed = getattr(expected, name), getattr(tree, name)
        if built is None:
            assert proposed is None, name
        else:
            np.testing.assert_array_equal(proposed, built, err_msg=name)
            assert proposed.dtype == built.dtype, name
    assert after.drafter == ()


def test_their_bytes():
    """A draft cache of 64 slots and 1 of scratch is rounded up to a block of 256."""
    made = layout("auto").empty_parts(3)
    assert layout("auto").drafter_bytes(3) == sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    heads = CONFIG.num_layers * CONFIG.num_kv_heads
    numbers = 4 * CONFIG.num_layers  # of the layers, on a CPU
    cache = 3 * heads * 256 * (2 * CONFIG.head_dim + 1) * 4 + 3 * 4 + numbers
    table, record = 3 * 60 * CAPACITY + 3 * 4, 3 * 2 * 4
    assert layout("auto").drafter_bytes(3) == cache + table + record
    assert layout("plain").drafter_bytes(3) == 0
