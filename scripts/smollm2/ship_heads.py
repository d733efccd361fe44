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
from tokenswift_jax.training.prediction import Replay, write_continuations
from tokenswift_jax.training.ranks import WIDTH, measure_ranks

_MOST_NODES = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Writes heads.safetensors, config.json and training.json; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args(argv)
    block = read_json(options.heads / "config.json")["tokenswift"]
    weights = read_json(base_directory(options.heads) / "config.json")
    block |= {
        "node_set": _node_sets(options),
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
    (options.output / "training.json").write_bytes((options.heads / "training.json").read_bytes())
    return 0


def _node_sets(options: argparse.Namespace) -> dict[str, list[list[int]]]:
    model = ts.load(options.heads, "float32")
    chosen = [prompt for prompt in prompts(sorted(options.books), 64, 99) if prompt.kind != "user"]
    starts = [list(start_of(model, prompt).ids) for prompt in chosen[: options.prompts]]
    replays = [
        Replay(model, write_continuations(model, starts, ts.SamplingConfig(temperature=heat), options.tokens))
        for heat in (0.0, 1.0)
    ]
    found = {}
    for schedule in ("partial", "fused"):
        texts = [text for replay in replays for text in measure_ranks(model, replay, schedule)]
        roots = np.concatenate([text[: max(len(text) - text.shape[1] + 1, 0)] for text in texts])
        found[schedule] = [list(path) for path, _ in best_nodes(roots, WIDTH, _MOST_NODES)]
    return found


if __name__ == "__main__":
    sys.exit(main())
