"""On a mesh, heads have the logits, the counts on a prompt, the accuracy, the ranks and the replays of one device."""

import jax
import numpy as np
import pytest

import tokenswift_jax as ts
from tokenswift_jax.parallel.mesh import use
from tokenswift_jax.training.evaluation import evaluate
from tokenswift_jax.training.prediction import Replay, write_continuations
from tokenswift_jax.training.ranks import measure_ranks

WALK = "In the morning the old woman went down to the river, and the children followed her. "
TEXTS = [WALK + "It was late in the autumn, and the road", WALK + "Once there was a"]


@pytest.fixture(scope="module")
def alone():
    return ts.load()


def test_head_logits_of_texts_on_two_groups(alone):
    found = ts.draft_logits(ts.load(mesh="data=2,model=2"), TEXTS)
    np.testing.assert_allclose(found, ts.draft_logits(alone, TEXTS), rtol=0, atol=1e-4)


def test_auto_counts_the_heads_on_the_prompt(alone):
    """The default mode, and a prompt that is long enough."""
    found, expected = (
        ts.generate(model, 3 * WALK, max_new_tokens=64, ignore_eos=True).token_ids
        for model in (ts.load(mesh="model=2"), alone)
    )
    assert found == expected


@pytest.mark.long
@pytest.mark.parametrize("mesh", ["model=2", "model=2,context=2"])
def test_evaluation_and_ranks(alone, mesh):
    split = ts.load(mesh=mesh)
    windows = np.asarray([alone.tokenizer(text).input_ids[:20] for text in TEXTS], np.int32)
    sampling, small = (
        ts.SamplingConfig(temperature=0.9, seed=1),
        {"prompt_tokens": 12, "continuation": 20, "prompts": 2},
    )
    found, expected = (evaluate(model, windows, sampling=sampling, budgets=(3,), **small) for model in (split, alone))
    for one, other in zip(found.accuracy.heads, expected.accuracy.heads, strict=True):
        assert one.text_loss == pytest.approx(other.text_loss, rel=1e-4)
        assert one.model_top == pytest.approx(other.model_top)
    ranks = []
    for model in (split, alone):
        with use(model.mesh):
            replay = Replay(model, write_continuations(model, windows.tolist(), sampling, 20))
            ranks.append(measure_ranks(model, replay, "fused"))
    jax.tree.map(np.testing.assert_array_equal, *ranks)
