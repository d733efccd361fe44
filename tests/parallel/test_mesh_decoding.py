"""The demo on meshes of virtual devices writes the texts of one device; `scripts/mesh_equality.py` runs more cells."""

import dataclasses

import pytest

import tokenswift_jax as ts
from tokenswift_jax.errors import UserError

WALK = "In the morning the old woman went down to the river, and the children followed her. "
PROMPTS = ("It was late in the autumn, and the road", "Once", 4 * WALK)
SAMPLED = ts.SamplingConfig(temperature=0.9, min_p=0.05, repetition_penalty=1.1, penalty_window=64, seed=5)
PARTIAL = ts.SpeculationConfig(mode="tokenswift", schedule="partial", node_budget=7, draft_cache=24, draft_sinks=4)
FUSED = ts.SpeculationConfig(mode="tokenswift", schedule="fused", node_budget=7)
PLAIN = ts.SpeculationConfig(mode="autoregressive")
BLOCKS = dataclasses.replace(PARTIAL, draft_cache=64, draft_block=16)
SELF = ts.SpeculationConfig(mode="selfspec", draft_cache=24, draft_sinks=4)
TOKENS = 40


@pytest.fixture(scope="module")
def model():
    loaded = {}

    def of(mesh):
        if mesh not in loaded:
            loaded[mesh] = ts.load(mesh=mesh)
        return loaded[mesh]

    return of


def texts(model, speculation, prompts=PROMPTS):
    results = ts.generate(model, list(prompts), SAMPLED, speculation, max_new_tokens=TOKENS, ignore_eos=True)
    return [result.token_ids for result in results]


@pytest.fixture(scope="module")
def expected(model):
    return texts(model(None), PLAIN)


@pytest.mark.parametrize(
    ("mesh", "speculation"), [("model=4,context=2", PARTIAL), ("data=2,model=2", FUSED), ("stage=2", PLAIN)]
)
def test_a_mesh_writes_the_text_of_one_device(model, expected, mesh, speculation):
    """The model has two KV heads; three rows on two groups leave one idle."""
    assert texts(model(mesh), speculation) == expected


def test_log_probabilities_and_audit(model):
    asked = PROMPTS[0], SAMPLED, PLAIN
    alone, split = (
        ts.generate(model(mesh), *asked, max_new_tokens=TOKENS, ignore_eos=True, logprobs=2, audit=True)
        for mesh in (None, "model=2")
    )
    assert split.token_ids == alone.token_ids
    for found, expected in zip(split.logprobs, alone.logprobs, strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert dict(found.top) == pytest.approx(dict(expected.top), abs=1e-4)
    assert (split.audit["positions"], split.audit["mismatches"]) == (TOKENS, 0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("mesh", "speculation"),
    [
        ("context=4", BLOCKS),
        ("data=2,context=2", SELF),
        ("model=2,context=2", FUSED),
        ("context=2", ts.SpeculationConfig(mode="ngram")),
        ("stage=3", PARTIAL),
        ("data=2,stage=2", SELF),
        ("model=2,stage=2", FUSED),
        ("context=2,stage=2", BLOCKS),
        ("stage=4", ts.SpeculationConfig(mode="ngram")),
        ("model=3", PARTIAL),
    ],
)
def test_more_meshes_write_the_text_of_one_device(model, expected, mesh, speculation):
    assert texts(model(mesh), speculation) == expected


@pytest.mark.parametrize(
    "meshes",
    [
        ("data=2,model=2", "model=3"),  # three devices share neither the heads nor the MLP nor the vocabulary evenly
        pytest.param((None, "stage=2", None), marks=pytest.mark.long),
    ],
)
def test_a_journal_goes_on_on_another_mesh(model, expected, tmp_path, meshes):
    for part, mesh in enumerate(meshes, 1):
        limits = {"ignore_eos": True, "journal": tmp_path / "j", "resume": part > 1}
        tokens = TOKENS * part // len(meshes)
        result = ts.generate(model(mesh), PROMPTS[0], SAMPLED, PLAIN, max_new_tokens=tokens, **limits)
    assert result.token_ids == expected[0]


def test_draft_weights_are_refused(model):
    narrow = dataclasses.replace(FUSED, draft_weights="int8")
    with pytest.raises(UserError, match="draft_weights does not work on a mesh yet; leave it out"):
        ts.generate(model("data=2,model=2"), "x", speculation=narrow, max_new_tokens=2)
