"""The demo model's making on a toy corpus: interrupted, continued, assembled, read by others."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import tokenswift_jax as ts
from tokenswift_jax.training import trainer

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))  # as python scripts/train_demo.py does

import train_demo  # noqa: E402
from demo.recipe import read_recipe  # noqa: E402
from demo.text import keep_wrapped, unwrap, write_books  # noqa: E402

WORDS = ("the", "of", "and", "river", "bank", "stone", "light", "walked", "slowly", "towards", "evening", "house")
FIRST_STEPS, KILLED_AT = 6, 4


def toy_book(seed: int) -> str:
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, 11)) + "," for _ in range(40)]
    return "\n".join(line + "\n" * (index % 6 == 5) for index, line in enumerate(lines))


def tiny_recipe() -> dict:
    """The shipped recipe with a tiny model and two phases of few steps."""
    parts = json.loads((ROOT / "configs" / "demo.json").read_text())
    parts["architecture"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    parts["text"] |= {"vocab_size": 280, "wrapped_every": 2}
    parts["every_phase"] |= {"heads": 2, "save_steps": 2, "batch_size": 2, "max_length": 24, "warmup_steps": 1}
    short = {"name": "short", "what": "all", "max_steps": FIRST_STEPS, "learning_rate": 3e-3, "skip_share": 0.5}
    parts["phases"] = [short, {"name": "heads", "what": "heads", "max_steps": 3}]
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three books and a tiny recipe."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "books").mkdir()
    for seed in range(3):
        (folder / "books" / f"book{seed}.txt").write_text(toy_book(seed), encoding="utf-8")
    (folder / "recipe.json").write_text(json.dumps(tiny_recipe()))
    return folder


def call(folder: Path, *words: object, recipe: str = "recipe.json", output: str = "model") -> int:
    places = ["--data", folder / "books", "--config", folder / recipe, "--work", folder / "work"]
    return train_demo.main([str(word) for word in (*places, "--output", folder / output, *words)])


@pytest.fixture(scope="module")
def model(folder):
    """The checkpoint of a run that was interrupted in its first phase and called again."""
    read = trainer._read

    def interrupted(run, metrics, number, report, batch):
        read(run, metrics, number, report, batch)
        if number == KILLED_AT:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_read", interrupted)
        assert call(folder) == 130
    assert (folder / "work" / "start" / "model.safetensors").exists()
    assert not (folder / "model").exists()
    assert call(folder) == 0
    return folder / "model"


def test_a_run_called_again_continues_and_reports_all_phases(folder, model):
    metrics = (folder / "work" / "short" / "training" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    training = json.loads((model / "training.json").read_text())
    assert training["started_from"] is None
    assert [(phase["name"], phase["steps"], phase["tokens"]) for phase in training["phases"]] == [
        ("short", 6, 6 * 48),
        ("heads", 3, 3 * 48),
    ]
    assert [phase["settings"]["skip_share"] for phase in training["phases"]] == [0.5, 0.0]
    total = training["in_all"]
    assert total.pop("minutes") is not None
    assert total == {"backbone_tokens": 288, "head_tokens": 144, "shortest": 24, "longest": 24}


def test_what_is_assembled(folder, model):
    config = json.loads((model / "config.json").read_text())
    nothing = dict.fromkeys(("node_set", "expected_tokens", "draft_vocab"))
    assert config["tokenswift"] == {"num_heads": 2, "head_type": "sequential", **nothing}
    assert json.loads((model / "generation_config.json").read_text())["penalty_window"] == 1024
    for name, last in (("model", folder / "work" / "short"), ("heads", folder / "work" / "heads")):
        with (
            safe_open(model / f"{name}.safetensors", framework="flax") as got,
            safe_open(last / f"{name}.safetensors", framework="flax") as expected,
        ):
            assert set(got.keys()) == set(expected.keys())
            for tensor in got.keys():  # noqa: SIM118 (not a dict)
                assert got.get_slice(tensor).get_dtype() == "BF16"
                trained = expected.get_tensor(tensor).astype("bfloat16")  # the frozen backbone is the first phase's
                np.testing.assert_array_equal(got.get_tensor(tensor), trained, err_msg=tensor)


def test_the_checkpoint_generates_what_its_backbone_says(model):
    loaded = ts.load(model)
    greedy = ts.SamplingConfig(temperature=0.0)
    drafting = ts.SpeculationConfig(mode="medusa", node_budget=3)
    out = ts.generate(loaded, "the river", greedy, drafting, max_new_tokens=8, ignore_eos=True)
    text = loaded.tokenizer("the river").input_ids + out.token_ids
    best = ts.score(loaded, [text])[0].argmax(axis=-1)
    assert best[-9:-1].tolist() == out.token_ids


def test_finished_phases_are_assembled_and_not_repeated(folder, model, capsys):
    weights = (folder / "work" / "short" / "model.safetensors").stat().st_mtime_ns
    assert call(folder, output="again") == 0
    assert "phase" not in capsys.readouterr().err
    assert (folder / "work" / "short" / "model.safetensors").stat().st_mtime_ns == weights
    assert (folder / "again" / "heads.safetensors").read_bytes() == (model / "heads.safetensors").read_bytes()


@pytest.mark.usefixtures("model")
def test_a_start_is_copied_and_counted(folder, capsys):
    other = folder / "other"
    (other / "short").parent.mkdir()
    for name in ("short", "heads"):
        (other / name).symlink_to(folder / "work" / name)
    words = ("--start", folder / "model", "--work", other)
    assert call(folder, *words, output="continued") == 0
    training = json.loads((folder / "continued" / "training.json").read_text())
    assert training["started_from"]["in_all"]["backbone_tokens"] == 288
    assert training["in_all"]["backbone_tokens"] == 576
    assert (other / "start" / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    assert call(folder, "--start", folder / "work" / "short", "--work", other) == 2
    assert "started from another checkpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("generation"), "must hold architecture"),
        (lambda parts: parts["phases"][0].update(speed=1), "phase short: unknown settings speed; known: "),
        (lambda parts: parts["phases"][0].update(name="start"), "a phase's name is 'start'"),
        (lambda parts: parts["phases"][0].update(learning_rate=-1), "phase short: learning_rate is -1"),
        (lambda parts: parts["phases"][0].update(learning_rate=0.5), "trained otherwise: learning_rate (0.003 then"),
        (lambda parts: parts["architecture"].update(rope_theta=1e4), "another model than the configuration's"),
    ],
)
def test_a_bad_configuration_is_one_line(folder, capsys, change, message):
    parts = tiny_recipe()
    change(parts)
    (folder / "bad.json").write_text(json.dumps(parts))
    assert call(folder, recipe="bad.json", output="never") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "never").exists()


def test_transformers_reads_the_same_model(model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    text = "the river walked “slowly”\n\nunder"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.eos_token_id) == (280, 0)
    theirs = transformers.LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(ts.score(ts.load(model), [ids])[0], expected, atol=1e-4)  # float32, other summation


def test_unwrap_joins_wrapped_lines_only():
    prose = "It was the best of times, it was the worst of times, it was\nthe age of wisdom.\n"
    verse = "  A short line,\n  another one.\n"
    assert unwrap(f"{prose}\n\n\n{verse}", 55) == (
        "It was the best of times, it was the worst of times, it was the age of wisdom.\n\n"
        "A short line,\nanother one.\n"
    )
    assert keep_wrapped(f"{prose}\n\n\n{verse}").startswith(prose + "\n  A short line,\n")


def test_every_so_many_th_book_keeps_its_lines(tmp_path):
    (tmp_path / "from").mkdir()
    long, short = "x" * 60, "end"
    for number in range(6):
        (tmp_path / "from" / f"{number}.txt").write_text(f"{long}\n{short}\n")
    write_books(tmp_path / "from", tmp_path / "to", 55, 5)
    wrapped = [number for number in range(6) if (tmp_path / "to" / f"{number}.txt").read_text().count("\n") == 2]
    assert wrapped == [4]
    (tmp_path / "from" / "0.txt").unlink()
    write_books(tmp_path / "from", tmp_path / "to", 55, None)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [f"{number}.txt" for number in range(1, 6)]
    assert (tmp_path / "to" / "4.txt").read_text() == f"{long} {short}\n"


def test_the_shipped_recipe():
    phases = read_recipe(ROOT / "configs" / "demo.json").phases
    assert [(name, one.what, one.max_length, one.max_steps) for name, one in phases.items()] == [
        ("short", "all", 512, 2000),
        ("medium", "all", 1024, 1000),
        ("long", "all", 2048, 250),
        ("heads", "heads", 512, 300),
    ]
    assert {(one.heads, one.head_type, one.distill_weight) for one in phases.values()} == {(3, "sequential", 1.0)}
    assert sum(one.max_steps * one.tokens_per_step for one in phases.values()) == 7_884_800
