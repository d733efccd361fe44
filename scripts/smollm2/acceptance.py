"""Tokens an iteration that draft heads give on held-out prompts: chat requests and passages of books, by nodes.

    python scripts/smollm2/acceptance.py --model HEADS [HEADS ...] --books HELD_OUT/*.txt --output rows.jsonl

The heads do not change the texts. So the target writes each text once (into --texts, where later calls find it), and
`tokenswift_jax.training.prediction` replays the iterations along it. It counts what decoding counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tokenswift_jax as ts
from tokenswift_jax.training.prediction import Continuations, Replay, write_continuations

CHAT = (
    "My neighbour plays loud music at night. Write a polite note that I can leave at the door.",
    "Plan a three-day trip to Lisbon for two people who like art and seafood.",
    "What is the difference between a virus and a bacterium?",
    "Write a bedtime story about a fox who is afraid of the dark.",
    "Give me a recipe for pancakes without eggs.",
    "Write a Python function that returns the n largest numbers of a list, with a docstring.",
    "List eight animals as JSON objects with the fields name, class and legs.",
    "Explain how a refrigerator works.",
)
_WORDS = 120  # of a passage


def main(argv: Sequence[str] | None = None) -> int:
    """Prints and writes a row per model, kind of prompt, temperature and node budget; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 7])
    parser.add_argument("--texts", type=Path, help="the texts, written if there is no such file")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    known: dict[str, list] = {}
    if options.texts is not None and options.texts.exists():
        known = json.loads(options.texts.read_text(encoding="utf-8"))
    with options.output.open("a", encoding="utf-8") as file:
        for name in options.model:
            model = ts.load(name, options.dtype)
            for kind, temperature, written in _continuations(model, known, options):
                begun = time.perf_counter()
                replay = Replay(model, written)
                for nodes in options.nodes:
                    drafting = ts.SpeculationConfig(
                        mode="tokenswift", schedule="fused", ngram_k=0, node_budget=nodes, draft_cache=4096
                    )
                    found = replay.predict(drafting)
                    row = {
                        "model": name,
                        "kind": kind,
                        "temperature": temperature,
                        "nodes": nodes,
                        "texts": len(written.tokens),
                        "tokens": found.tokens,
                        "tokens_an_iteration": round(found.expected_tokens, 3),
                        "seconds": round(time.perf_counter() - begun, 1),
                    }
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(row, flush=True)
    return 0


def _continuations(
    model: ts.Model, known: dict[str, list], options: argparse.Namespace
) -> list[tuple[str, float, Continuations]]:
    """The texts of each kind and temperature; `known` and its file get those that are new."""
    assert model.tokenizer is not None
    chats = [[{"role": "user", "content": text}] for text in CHAT]
    prompts = {
        "chat": [
            model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
        ],
        "book": _passages(options.books, options.passages),
    }
    found = []
    for kind, texts in prompts.items():
        ids = [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        for temperature in (0.0, 1.0):
            sampling, key = ts.SamplingConfig(temperature=temperature, seed=1), f"{kind} {temperature} {options.tokens}"
            if key not in known:
                known[key] = [list(text) for text in write_continuations(model, ids, sampling, options.tokens).tokens]
                if options.texts is not None:
                    options.texts.write_text(json.dumps(known), encoding="utf-8")
            tokens = tuple(tuple(text) for text in known[key])
            found.append((kind, temperature, Continuations(sampling, tuple(map(tuple, ids)), tokens)))
    return found


def _passages(books: Sequence[Path], count: int) -> list[str]:
    """Passages from places spread evenly over the books."""
    found = []
    for number in range(count):
        words = sorted(books)[number % len(books)].read_text(encoding="utf-8").split(" ")
        start = int(len(words) * (number + 0.5) / count)
        found.append(" ".join(words[start : start + _WORDS]).strip())
    return found


if __name__ == "__main__":
    sys.exit(main())
