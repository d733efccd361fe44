"""Mode `auto` against fixed plans on six texts, one table a model.

    python scripts/plan_table.py --model smollm2 demo
    python scripts/plan_table.py --model smollm2 --dtype bfloat16 --nodes 7 15 63     # on a GPU
    python scripts/plan_table.py --model smollm2 --texts quote book --tokens 2048

Every round decodes a text once with each contender, in turns (`benchmarking.runs.play`), so that a machine that slows
down slows all of them; the fastest of a contender's rounds counts. In float32 all runs of a text must emit the same
token ids; in narrower types they may part where two logits tie, and a row counts the tokens that all share.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarking.rows import same_leading_tokens
from benchmarking.runs import Contender, play, run_ours

import tokenswift_jax as ts

PASSAGE = """The Diodon, when it has been taken out of water for a short time, and then again immersed in it, absorbs a
considerable quantity both of water and air by the mouth, and perhaps likewise by the branchial orifices. This process
is effected by two methods: the air is swallowed, and is then forced into the cavity of the body, its return being
prevented by a muscular contraction which is externally visible: but the water enters in a gentle stream through the
mouth, which is kept wide open and motionless; this latter action must, therefore, depend on suction."""
# Of each text: the prompt, whether it is a question for the chat template, and the temperature.
TEXTS = {
    "quote": (f"Correct the spelling of this passage and change nothing else:\n\n{PASSAGE}", True, 0.0),
    "json": ("List twelve animals as JSON objects with the fields name, class and legs.", True, 0.0),
    "chat": ("What is the difference between a virus and a bacterium?", True, 0.0),
    "book": (PASSAGE, False, 0.0),
    "book sampled": (PASSAGE, False, 1.0),
    "hostile": ("What is the difference between a virus and a bacterium?", True, 1.6),
}
PLAIN = {"plain": ts.SpeculationConfig(mode="autoregressive")}


def fixed_plans(nodes: list[int], heads: bool) -> dict[str, ts.SpeculationConfig]:
    """The plans that `auto` is compared with: drafts of so many nodes, by heads where the model has some."""
    ngrams = {f"ngram {n}": ts.SpeculationConfig("ngram", node_budget=n, ngram_k=20) for n in nodes}
    if not heads:
        return PLAIN | ngrams
    fused = {f"fused {n}": ts.SpeculationConfig("tokenswift", "fused", node_budget=n) for n in nodes}
    return PLAIN | fused | dict([list(ngrams.items())[len(ngrams) // 2]])


def chunks(records: ts.TokenLog) -> list[tuple[int, float]]:
    """Tokens and milliseconds of every chunk after prefill: the tokens of a chunk share its time equally."""
    counts = [(seconds, len(list(same))) for seconds, same in groupby(records.seconds[1:].tolist())]
    return [(tokens, round(1e3 * seconds * tokens, 2)) for seconds, tokens in counts]


def measure(model: ts.Model, name: str, tokens: int, rounds: int, nodes: list[int]) -> dict[str, Any]:
    """One row of the table: tokens per second of every contender, and what `auto` ran."""
    prompt, chat, temperature = TEXTS[name]
    contenders = fixed_plans(nodes, model.config.num_draft_heads > 0) | {"auto": ts.SpeculationConfig()}
    if chat and getattr(model.tokenizer, "chat_template", None):
        ids = model.encode(messages=[{"role": "user", "content": prompt}])
    else:
        ids = model.encode(prompt)
    sampling = ts.SamplingConfig(temperature=temperature, seed=1)

    def contender(label: str, speculation: ts.SpeculationConfig) -> Contender:
        return Contender(label, lambda _: run_ours(model, ids, sampling, speculation, tokens), {}, label != "auto")

    results = play([contender(*one) for one in contenders.items()], rounds, lambda _: None)
    shared = {label: same_leading_tokens(results, label, "plain") for label in contenders}
    if model.dtype == "float32" and min(shared.values()) < tokens:
        raise SystemExit(f"{name}: {min(shared, key=shared.__getitem__)} emits other tokens than plain decoding")
    rates = {label: [round(1e3 / run.ms_per_token, 2) for run in runs] for label, runs in results.runs.items()}
    best = {label: max(runs) for label, runs in rates.items()}
    fixed = max(rate for label, rate in best.items() if label != "auto")
    newest = results.runs["auto"][-1].result
    assert newest is not None
    assert newest.records is not None
    return {
        "text": name,
        "tokens": tokens,
        "dtype": model.dtype,
        "rates": rates,
        "same_tokens": min(shared.values()),
        "auto_over_best": round(best["auto"] / fixed, 3),
        "auto_over_plain": round(best["auto"] / best["plain"], 3),
        "trace": [(e["from_token"], e["schedule"] or e["mode"], e["node_budget"]) for e in newest.schedule_trace],
        "chunks": chunks(newest.records),
        "reason": newest.plan_reason,
        "load_average": os.getloadavg()[0],
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["demo"], help="checkpoints; demo: the bundled one")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS), help="texts to decode")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each text")
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 3, 7], help="of the fixed plans")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the model (default: load's own)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the fastest run of a contender counts")
    parser.add_argument("--output", type=Path, help="JSON file that gets the rows; it states the load of the machine")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for name in options.model:
        model = ts.load(None if name == "demo" else name, dtype=options.dtype)
        for text in options.texts:
            row: dict[str, Any] = {"model": name} | measure(model, text, options.tokens, options.rounds, options.nodes)
            if not rows or rows[-1]["model"] != name:
                print(f"{name}, {model.dtype}, {options.tokens} tokens, tokens/s, best of {options.rounds} rounds")
                print(f"{'':14}", *(f"{label:>8}" for label in row["rates"]), " auto/best auto/plain  load  auto ran")
            rows.append(row)
            rates = (f"{max(runs):8.1f}" for runs in row["rates"].values())
            ran = ", ".join(f"{mode} {nodes or ''} from {at}" for at, mode, nodes in row["trace"][:6])
            ratios = f"{row['auto_over_best']:9.2f} {row['auto_over_plain']:10.2f}"
            print(f"{text:14}", *rates, ratios, f"{row['load_average']:6.1f}  {ran}; {row['reason']}", flush=True)
    if options.output is not None:
        document = ts.describe_environment() | {"rows": rows}
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
