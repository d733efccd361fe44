"""Tokens an iteration that draft heads give on held-out prompts: chat requests and passages of books, by nodes.

    python scripts/smollm2/acceptance.py --model HEADS --books HELD_OUT/*.txt --output rows.jsonl

The heads do not change the texts, so rows of several checkpoints compare.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import tokenswift_jax as ts

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
    """Prints and writes a row per kind of prompt, temperature and node budget; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype")
    parser.add_argument("--books", type=Path, nargs="+", required=True)
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 7])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    model = ts.load(options.model, options.dtype)
    tokenizer: Any = model.tokenizer
    chats = [[{"role": "user", "content": text}] for text in CHAT]
    prompts = {
        "chat": [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats],
        "book": _passages(options.books, options.passages),
    }
    for kind, temperature, nodes in product(prompts, (0.0, 1.0), options.nodes):
        begun = time.perf_counter()
        results = ts.generate(
            model,
            [tokenizer.encode(text, add_special_tokens=False) for text in prompts[kind]],
            ts.SamplingConfig(temperature=temperature, seed=1),
            ts.SpeculationConfig(mode="tokenswift", schedule="fused", ngram_k=0, node_budget=nodes),
            max_new_tokens=options.tokens,
            ignore_eos=kind == "book",
        )
        each = [result.mean_accepted_length for result in results]
        row = {"model": str(options.model), "kind": kind, "temperature": temperature, "nodes": nodes}
        row |= {"texts": len(results), "tokens": sum(result.generated_tokens for result in results)}
        row |= {"tokens_an_iteration": round(mean(each), 3), "of_each": [round(value, 2) for value in each]}
        row |= {"seconds": round(time.perf_counter() - begun, 1)}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    return 0


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
