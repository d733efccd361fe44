"""Training on a mesh: the weights of one device, each device's part of the state, and a run moved to another."""

import json
import shutil
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from safetensors.numpy import load_file, save_file
from small_runs import paths_in, run, weights

from tokenswift_jax.checkpoint import open_checkpoint
from tokenswift_jax.errors import UserError
from tokenswift_jax.parallel.mesh import make_mesh
from tokenswift_jax.parallel.mesh_spec import MeshSpec
from tokenswift_jax.training import curves, state_memory, trainer
from tokenswift_jax.training.metrics import read_metrics
from tokenswift_jax.training.run_mesh import run_mesh
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shares import Shares

pytestmark = pytest.mark.slow

# Adam divides a gradient by its size. Where that is as small as the rounding of the sums (1e-9; the median is 1e-4),
# another order of the sums moves the weight by a part of the learning rate.
SHORT = {"max_steps": 4, "save_steps": 2, "batch_size": 3, "evaluate_steps": 0, "learning_rate": 2e-4}
LONG: dict[str, Any] = SHORT | {
    "max_steps": None,
    "epochs": 2,
    "gradient_accumulation_steps": 2,
    "evaluate_steps": None,
}
SETS = [("heads", "data=4", 4), ("all", "data=4,model=2", 8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and a float32 model, so that the checkpoints have the bits of the trained parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_curves", lambda *_: None)  # has its own test, and costs half a second
        yield made_in(tmp_path_factory.mktemp("mesh"))


def made_in(folder):
    file = paths_in(folder).model / "model.safetensors"
    tensors = {name: value.astype(np.float32) for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def runs(place):
    """The last state of runs on one device and on a mesh, by the name of their folder, and their lines."""
    made, found, init = [], {}, trainer._Run.__init__

    def kept(self, *given):
        init(self, *given)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._Run, "__init__", kept)
        for what, mesh, _ in SETS:
            for name, on in ((what, None), (mesh, mesh)):
                found[name] = run(paths_in(place, name), what=what, mesh=on, **SHORT), made.pop()
    return found


def assert_close(found, wanted):
    """Equal weights in two output folders, and equal losses and gradients: Adam hides the scale of a gradient."""
    found, wanted = ((weights(each), read_metrics(each / "training" / "metrics.jsonl")) for each in (found, wanted))
    assert found[0].keys() == wanted[0].keys()
    for name, value in found[0].items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wanted[0][name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("train/head_1/loss", "train/head_2/loss", "train/gradient_norm"):
        a, b = ([row[name] for row in rows if name in row] for rows in (found[1], wanted[1]))
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


def share(tree, devices):
    """The bytes that the first device stores of a tree's arrays, by all their bytes."""
    leaves = jax.tree.leaves(tree)
    assert all(len(leaf.addressable_shards) == devices for leaf in leaves)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize(("what", "mesh", "devices"), SETS)
def test_weights_are_those_of_one_device_and_each_device_stores_its_part(place, runs, what, mesh, devices):
    printed, made = runs[mesh]
    assert f"mesh {mesh}: 4 groups of devices cannot share a batch_size of 3 evenly; rows of padding fill" in printed
    assert_close(place / mesh, place / what)
    parts = [made.state.params, made.state.optimizer] + ([made.frozen] if what == "heads" else [])
    shares = [share(part, devices) for part in parts]
    # Norms and the optimizer's counts are on every device.
    assert all(1 / devices <= part < 1.13 / devices for part in shares), shares


def test_a_gradient_has_the_parts_of_its_parameter():
    """Gathered for the product alone: no device keeps all of a matrix or of its gradient."""
    shares = Shares(make_mesh(MeshSpec(data=8), kind=AxisType.Auto))
    params = shares.put({"mlp": {"up_proj": {"kernel": jnp.ones((16, 32), jnp.float32)}}})
    rows = shares.put_rows(jnp.ones((1, 8, 16), jnp.float32))

    def loss(params, x):
        return jnp.sum(shares.by_rows(x) @ shares.gathered(params)["mlp"]["up_proj"]["kernel"])

    compiled = jax.jit(jax.grad(loss)).lower(params, rows[0]).compile()
    assert "all-gather" in (compiled.as_text() or "")
    (gradient,) = jax.tree.leaves(compiled(params, rows[0]))
    assert gradient.sharding.is_equivalent_to(jax.tree.leaves(params)[0].sharding, 2)
    assert gradient.addressable_shards[0].data.shape == (16, 4)
    np.testing.assert_array_equal(gradient, np.full((16, 32), 8))
    assert shares.sharding(("norm", "scale"), (32,)).is_fully_replicated
    assert shares.sharding(("mlp", "up_proj", "kernel"), (9, 7)).is_fully_replicated
    # Between the two passes it keeps the part too: the backward pass gathers again.
    _, back = jax.vjp(shares.gathers_again(lambda *given: jnp.sin(loss(*given))), params, rows[0])
    kept = [leaf for leaf in jax.tree.leaves(back) if leaf.shape == (16, 32)]
    assert kept
    assert all(leaf.addressable_shards[0].data.shape == (16, 4) for leaf in kept)


@pytest.mark.parametrize(
    ("size", "heads", "split"),
    [(2, (9, 3), ()), (3, (9, 3), ("q_proj", "k_proj", "v_proj", "o_proj")), (4, (8, 2), ("q_proj", "o_proj"))],
)
def test_the_model_axis_cuts_no_head(size, heads, split):
    """SmolLM2 has 9 query heads and 3 K/V heads: two devices divide neither number, three divide both. Of 8 and 2, four
    devices divide the first."""
    wide, narrow = (64 * count for count in heads)
    shapes = {"q_proj": (wide, wide), "k_proj": (wide, narrow), "v_proj": (wide, narrow), "o_proj": (wide, wide)}
    found = {}
    for name, shape in {**shapes, "up_proj": (wide, 1536)}.items():
        mesh = make_mesh(MeshSpec(data=2, model=size), kind=AxisType.Auto)
        place = Shares(mesh, heads).sharding((name, "kernel"), shape)
        assert isinstance(place, NamedSharding)
        assert "data" in place.spec
        found[name] = "model" in place.spec
    assert found == {name: name in split for name in shapes} | {"up_proj": True}


@pytest.mark.parametrize("mesh", ["data=2", None])
@pytest.mark.usefixtures("runs")
def test_a_run_goes_on_on_another_mesh(place, mesh):
    first, second = place / "data=4", place / f"on-{mesh}"
    shutil.copytree(first / "training", second / "training")
    shutil.rmtree(second / "training" / "steps" / "4")
    printed = run(paths_in(place, second.name), mesh=mesh, resume=True, **SHORT)
    assert f"resumed at step 2 (mesh data=4 then, {mesh or 1} now" in printed
    assert_close(second, first)
    assert_close(second, place / "heads")
    assert json.loads((second / "training.json").read_text())["mesh"] == str(mesh or 1)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("data=16", "mesh data=16 needs 16 devices, and there are 8; data is too large: mesh data=8 fits"),
        ("rows=2", "mesh rows=2: there is no axis rows; axes: data, model$"),
        ("stage=2", "mesh stage=2: training shares rows over data and matrices over model, and over no other axis"),
        ("context=2", "mesh context=2: training shares rows over data and matrices over model, and over no other axis"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(place, mesh, message):
    with pytest.raises(UserError, match=message):
        run(paths_in(place, "refused"), mesh=mesh, **SHORT)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="training runs in one process, and its mesh is of one machine"):
        run_mesh("data=2", TrainingSettings())


def test_auto_says_why_it_chose():
    assert run_mesh("auto", TrainingSettings()) == (
        None,
        ("mesh auto: 1, since the 8 virtual devices share one CPU and its memory",),
    )


def test_too_little_memory_is_an_error_before_loading(place, monkeypatch):
    monkeypatch.setattr(state_memory, "least_free", lambda devices: (20_000, str(devices[0])))
    message = (
        r"state on each device of this mesh, and cpu:0 has 2e-05 GB free: 0.000\d+ GB are missing; a larger data axis"
    )
    with pytest.raises(UserError, match=message):
        run(paths_in(place, "refused"), mesh="data=2", **SHORT)
    config, settings = open_checkpoint(place / "model").config, TrainingSettings(what="all")
    one, all_of_them = (
        state_memory.state_bytes(config, settings, np.dtype(np.float32), Shares(mesh))
        for mesh in (None, make_mesh(MeshSpec(data=8), kind=AxisType.Auto))
    )
    assert one / 8 < all_of_them < 0.15 * one


@pytest.mark.long
@pytest.mark.parametrize("head_type", ["sequential", "medusa"])
def test_a_step_over_the_draft_cache_is_that_of_one_device(place, head_type):
    view = {"what": "all", "draft_cache_prob": 0.5, "draft_cache": 32, "max_length": 64, "head_type": head_type}
    for mesh in (None, "data=2,model=2"):
        paths = paths_in(place, f"view-{head_type}-{mesh}")
        run(paths, mesh=mesh, remat="none" if mesh is None else "layers", **SHORT, **view)
    assert_close(place / f"view-{head_type}-data=2,model=2", place / f"view-{head_type}-None")


@pytest.mark.long
def test_states_are_kept_texts_written_and_heads_examined_on_a_mesh(place):
    names = ("whole-1", "whole-8")
    for name, mesh in zip(names, (None, "data=4,model=2"), strict=True):
        paths = replace(paths_in(place, name), cache=place / f"cache-{name}")
        run(paths, mesh=mesh, keep_states=True, self_distill=8, **LONG)
    assert_close(*(place / name for name in names))
    sets = [json.loads((place / name / "config.json").read_text())["tokenswift"]["node_set"] for name in names]
    assert sets[0] == sets[1]
    assert sets[0]
