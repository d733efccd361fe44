"""The script that makes SmolLM2's draft heads, on the bundled demo: prompts, a few steps on the model's own texts, and
the folder to ship."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

import tokenswift_jax as ts
from tokenswift_jax.checkpoint.packaged import DECIDING, PACKAGED
from tokenswift_jax.model import DEMO_MODEL

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # as python scripts/smollm2_heads.py does

import smollm2_heads

SMALL = "--self-distill 4 --self-distill-prompt 40 --max-length 48 --batch-size 2 --epochs 2 --draft-vocab 512"
SMALL += " --evaluate-steps 0 --warmup-steps 1"


def test_prompts_training_and_the_folder_to_ship(tmp_path, capsys):
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_text("The road went up the hill and down to the river. " * 40)
    words = ["--model", str(DEMO_MODEL), "--books", str(books), "--prompts", "8", "--work", str(tmp_path / "run")]
    words += ["--output", str(tmp_path / "shipped"), "--", *SMALL.split()]
    assert smollm2_heads.main(words) == 0
    assert "self-distillation: 4/4 texts" in capsys.readouterr().err
    prompts = [json.loads(line)["text"] for line in (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()]
    assert len(set(prompts)) == 8
    assert sum("hill" in text for text in prompts) == 3

    trained, model = ts.load(tmp_path / "run" / "heads"), ts.load()
    assert len(trained.config.draft_vocab) == 512
    before, after = (one.params["draft_heads"]["heads"][0]["down_proj"]["kernel"][...] for one in (model, trained))
    assert 0 < np.abs(np.asarray(after) - np.asarray(before)).max() < 1e-2

    block = json.loads((tmp_path / "shipped" / "config.json").read_text())["tokenswift"]
    shipped = json.loads((PACKAGED["smollm2"].heads / "config.json").read_text())["tokenswift"]
    assert block.keys() == shipped.keys()
    assert (block["base"], block["trained_for"].keys(), len(block["draft_vocab"])) == ("smollm2", {*DECIDING}, 512)
    with safe_open(tmp_path / "shipped" / "heads.safetensors", framework="flax") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118 (not a dict)
    assert [run["steps"] for run in json.loads((tmp_path / "shipped" / "training.json").read_text())] == [4]

    assert smollm2_heads.main(["--books", str(tmp_path), "--work", str(tmp_path / "other")]) == 2
    assert "no *.txt file in" in capsys.readouterr().err
