"""Writes trained heads into the package, where `--model smollm2` finds them: bfloat16, with node sets.

    python scripts/smollm2/ship_heads.py HEADS tokenswift_jax/smollm2_heads --books BOOKS/*.txt

The node sets come from texts that the model writes after prompts of the training's kinds, not after held-out ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import tokenswift_jax as ts
from smollm2.prompts import prompts
from smollm2.write_texts import start_of
from tokenswift_jax.checkpoint.directory import base_directory, read_json
from tokenswift_jax.checkpoint.packaged import DECIDING
from tokenswift_jax.training.node_search import best_nodes
from tokenswift_jax.training.prediction import Continuations, Replay, write_continuations
from tokenswift_jax.training.ranks import WIDTH, measure_ranks

_MOST_NODES = 32
_PLACES = ("model", "texts", "books", "output")  # of the machine that trained


def main(argv: Sequence[str] | None = None) -> int:
    """Writes heads.safetensors, config.json and training.json; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--books", type=Path, nargs="*", help="without any, the output keeps its node sets")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--texts", type=Path, help="the texts for the node sets, written if there is no such file")
    parser.add_argument("--stages", type=Path, nargs="*", default=[], help="training.json of the runs before")
    options = parser.parse_args(argv)
    block = read_json(options.heads / "config.json")["tokenswift"]
    weights = read_json(base_directory(options.heads) / "config.json")
    block |= {
        "node_set": _node_sets(options) if options.books else _stored_node_sets(options.output),
        "base": "smollm2",
        "trained_for": {field: weights[field] for field in DECIDING},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    drafted = ",".join(map(str, block.pop("draft_vocab")))
    config = json.dumps({"tokenswift": block | {"draft_vocab": []}}, indent=2)
    (options.output / "config.json").write_text(
        config.replace('"draft_vocab": []', f'"draft_vocab": [{drafted}]') + "\n", encoding="utf-8"
    )
    tensors = load_file(options.heads / "heads.safetensors")
    save_file(
        {name: np.ascontiguousarray(value.astype(ml_dtypes.bfloat16)) for name, value in tensors.items()},
        options.output / "heads.safetensors",
    )
    (options.output / "heads.safetensors").chmod(0o644)
    stages = [read_json(path) for path in (*options.stages, options.heads / "training.json")]
    for stage in stages:
        for name in _PLACES:
            stage.get("options", {}).pop(name, None)
    (options.output / "training.json").write_text(json.dumps(stages, indent=2) + "\n", encoding="utf-8")
    return 0


def _stored_node_sets(output: Path) -> dict[str, list[list[int]]]:
    return read_json(output / "config.json")["tokenswift"]["node_set"]


def _node_sets(options: argparse.Namespace) -> dict[str, list[list[int]]]:
    model = ts.load(options.heads, "float32")
    chosen = [prompt for prompt in prompts(sorted(options.books), 64, 99) if prompt.kind != "user"]
    starts = [list(start_of(model, prompt).ids) for prompt in chosen[: options.prompts]]
    known: dict[str, list] = {}
    if options.texts is not None and options.texts.exists():
        known = json.loads(options.texts.read_text(encoding="utf-8"))
    replays = []
    for heat in (0.0, 1.0):
        sampling = ts.SamplingConfig(temperature=heat)
        if str(heat) not in known:
            known[str(heat)] = [
                list(ids) for ids in write_continuations(model, starts, sampling, options.tokens).tokens
            ]
        tokens = tuple(tuple(ids) for ids in known[str(heat)])
        replays.append(Replay(model, Continuations(sampling, tuple(map(tuple, starts)), tokens)))
    if options.texts is not None:
        options.texts.write_text(json.dumps(known), encoding="utf-8")
    found = {}
    for schedule in ("partial", "fused"):
        texts = [text for replay in replays for text in measure_ranks(model, replay, schedule)]
        roots = np.concatenate([text[: max(len(text) - text.shape[1] + 1, 0)] for text in texts])
        found[schedule] = [list(path) for path, _ in best_nodes(roots, WIDTH, _MOST_NODES)]
    return found


if __name__ == "__main__":
    sys.exit(main())
