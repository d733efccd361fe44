"""The demo's training script on a toy corpus: it learns, it resumes exactly, its directory is what HF reads."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # as python scripts/train_demo.py does

import train_demo  # noqa: E402
from demo.attention import blocked_attention  # noqa: E402
from demo.measures import bits_per_character, forward_pass  # noqa: E402
from demo.recipe import Phase, read_recipe  # noqa: E402
from demo.reload import load_decoder  # noqa: E402
from demo.text import keep_wrapped, unwrap  # noqa: E402
from demo.windows import WindowSampler  # noqa: E402

STEPS = 24


WORDS = ("the", "of", "and", "river", "bank", "stone", "light", "walked", "slowly", "towards", "evening", "house")


def toy_book(seed: int) -> str:
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, 11)) + "," for _ in range(120)]
    return "\n".join(line + "\n" * (index % 6 == 5) for index, line in enumerate(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books and a tiny recipe; a whole run of STEPS steps in whole/, its log in log.jsonl."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "books").mkdir()
    for seed in range(2):
        (folder / "books" / f"book{seed}.txt").write_text(toy_book(seed), encoding="utf-8")
    fields = json.loads((ROOT / "configs" / "demo.json").read_text())
    fields["architecture"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    fields["text"]["vocab_size"] = 280
    short = {"name": "short", "share": 0.75, "batch": 4, "length": 32, "gap_share": 0.5}
    short |= {"head_stride": 4, "head_weight": 0.1, "freeze_backbone": False}
    heads = short | {"name": "heads", "share": 0.25, "head_stride": 1, "head_weight": 0.0, "freeze_backbone": True}
    fields["phases"] = [short, heads]
    (folder / "recipe.json").write_text(json.dumps(fields))
    return folder


def run(folder: Path, name: str, *flags: str) -> Path:
    places = ["--data", folder / "books", "--config", folder / "recipe.json"]
    places += ["--state", folder / f"{name}-state", "--output", folder / name]
    train_demo.main([*map(str, places), "--steps", str(STEPS), *flags])
    return folder / name


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    with contextlib.redirect_stdout(io.StringIO()) as log:
        checkpoint = run(folder, "whole")
    (folder / "log.jsonl").write_text(log.getvalue())
    return checkpoint


def state_tensors(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "state.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.mark.usefixtures("whole")
def test_loss_falls(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1
    assert lines[-1]["step"] == STEPS
    assert lines[-1]["backbone"] < lines[0]["backbone"] - 0.5
    assert all(last < first - 0.1 for first, last in zip(lines[0]["heads"], lines[-1]["heads"], strict=True))


@pytest.mark.parametrize("stop", [7, 20])  # in either phase
def test_resumed_run_ends_where_the_whole_one_does(folder: Path, whole: Path, stop: int) -> None:
    run(folder, f"halves{stop}", "--stop-after", str(stop))
    resumed = run(folder, f"halves{stop}", "--resume")
    expected, got = state_tensors(folder / "whole-state"), state_tensors(folder / f"halves{stop}-state")
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_checkpoint_names_and_shapes(whole: Path) -> None:
    with safe_open(whole / "heads.safetensors", framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    expected = {f"medusa_layers.{i}.linear.weight": [32, 32] for i in range(3)}
    expected |= {f"medusa_layers.{i}.{kind}_layernorm.weight": [32] for i in range(3) for kind in ("input", "post")}
    assert shapes == expected
    assert dtypes == {"BF16"}
    config = json.loads((whole / "config.json").read_text())
    assert config["tokenswift"] == {"num_heads": 3, "head_type": "chained", "node_set": None, "base": None}
    assert json.loads((whole / "generation_config.json").read_text())["penalty_window"] == 1024


def test_transformers_reads_the_same_model(whole: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole)
    text = "the river walked “slowly”\n\nunder"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.eos_token_id) == (280, 0)
    model = transformers.LlamaForCausalLM.from_pretrained(whole, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(forward_pass(load_decoder(whole))(np.array(ids))[1], expected, atol=1e-4)


def test_bits_per_character_does_not_depend_on_the_windows(whole: Path) -> None:
    model, ids = load_decoder(whole), np.arange(3, 43)
    logits = np.asarray(forward_pass(model)(np.concatenate([[0], ids[:-1]]))[1], np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log2(chances[np.arange(40), ids]).sum() / 100
    assert bits_per_character(model, ids, characters=100, length=64, stride=32) == pytest.approx(expected, rel=1e-5)
    # one token of context: every window start is scored as if the text began there
    short = bits_per_character(model, ids, characters=100, length=8, stride=1)
    assert short == pytest.approx(expected, rel=0.5)


def test_blocked_attention_is_causal_attention() -> None:
    queries, keys, values = (
        jax.random.normal(key, (2, 20, heads, 8))
        for key, heads in zip(jax.random.split(jax.random.key(0), 3), (4, 2, 2), strict=True)
    )
    blocked, _ = blocked_attention(8)(0, queries, keys, values, None)
    expected = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
    assert jnp.allclose(blocked, expected, atol=1e-5)


def test_a_gap_moves_tokens_and_positions_alike() -> None:
    book = np.arange(5000, dtype=np.uint16)
    phase = Phase("gaps", 1.0, 64, 16, 1.0, 1, 0.0, False)
    tokens, positions = WindowSampler([book], [book], 0.5, 4000, seed=3).sample(phase, 0)
    assert (positions[:, 0] == 0).all()
    assert (tokens - positions == tokens[:, :1]).all()  # the book's own distances
    jumps = np.diff(positions, axis=1) - 1
    assert ((jumps > 0).sum(axis=1) == 1).all()
    assert positions.max() < 4000
    assert jumps.max() > 1000


def test_unwrap_joins_wrapped_lines_only() -> None:
    prose = "It was the best of times, it was the worst of times, it was\nthe age of wisdom.\n"
    verse = "  A short line,\n  another one.\n"
    assert unwrap(f"{prose}\n\n\n{verse}", 55) == (
        "It was the best of times, it was the worst of times, it was the age of wisdom.\n\n"
        "A short line,\nanother one.\n"
    )
    assert keep_wrapped(f"{prose}\n\n\n{verse}").startswith(prose + "\n  A short line,\n")


def test_the_shipped_recipe_is_whole() -> None:
    recipe = read_recipe(ROOT / "configs" / "demo.json")
    assert recipe.phase_at(0.0).name == recipe.phases[0].name
    assert recipe.phase_at(0.9999) == recipe.phases[-1]
    assert recipe.backbone_share < 1.0
