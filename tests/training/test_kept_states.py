"""Hidden states kept for later epochs: the weights of a run that runs the backbone each time, and one pass a row."""

from dataclasses import replace

import numpy as np
import pytest
from small_runs import paths_in, run, text_in, weights

from tokenswift_jax.errors import UserError
from tokenswift_jax.training import kept_states
from tokenswift_jax.training.metrics import read_metrics
from tokenswift_jax.training.settings import TrainingSettings

SETTINGS = {"max_steps": None, "epochs": 3, "evaluate_steps": 0, "gradient_accumulation_steps": 2, "save_steps": 5}


@pytest.fixture
def passes(monkeypatch):
    """The rows that went through the backbone."""
    seen, compute = [], kept_states.KeptStates._compute

    def counted(self, rows):
        seen.extend(row.tokens.tobytes() for row in rows)
        compute(self, rows)

    monkeypatch.setattr(kept_states.KeptStates, "_compute", counted)
    return seen


def test_kept_states_are_those_of_the_backbone(tmp_path, passes):
    few = (str(text_in(tmp_path / "few", documents=12)),)
    kept, plain, broken = (replace(paths_in(tmp_path, name), data=few) for name in ("kept", "plain", "broken"))
    assert "hidden states: up to" in run(kept, keep_states=True, **SETTINGS)
    rows = len(passes)
    assert len(set(passes)) == rows > 12
    run(plain, **SETTINGS)
    assert len(passes) == rows
    curves = [read_metrics(each.output / "training" / "metrics.jsonl") for each in (kept, plain)]
    for name in ("train/head_1/loss", "train/head_2/loss", "train/gradient_norm"):
        a, b = ([row[name] for row in curve] for curve in curves)
        assert len(a) == 3 * (rows // 4)
        np.testing.assert_allclose(a, b, rtol=1e-4)  # float32 sums in another order
    # A run that goes on in another process begins with an empty file.
    read = kept_states.KeptStates.of

    def killed(self, batch, steps=[]):  # noqa: B006 (counts the calls)
        steps.append(batch)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return read(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_states.KeptStates, "of", killed)
        with pytest.raises(KeyboardInterrupt):
            run(broken, keep_states=True, **SETTINGS)
    assert "resumed at step 5" in run(broken, resume=True, keep_states=True, **SETTINGS)
    whole = weights(kept.output)
    for name, value in weights(broken.output).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)
    assert sorted(path.name for path in (broken.output / "training").iterdir()) == sorted(
        path.name for path in (plain.output / "training").iterdir()
    )


@pytest.mark.parametrize(
    "other", [{"what": "all"}, {"draft_cache_prob": 0.5, "draft_cache": 64}, {"skip_share": 0.1}, {"keep_states": 1}]
)
def test_states_that_change_cannot_be_kept(other):
    with pytest.raises(UserError, match="keep_states"):
        TrainingSettings(**({"keep_states": True} | other))
