"""Records texts of a model for `tests/simulated_device.py`: the choice of plans is replayed on them without a clock.

    python scripts/policy_texts.py benchmarks/2026-11-26-policy-texts.json --model smollm2 --books BOOK.txt ...

Of every text that the file has, and of tasks with long prompts made of the books, it stores the token ids and, decoded
with draft heads of 1, 3 and 7 nodes, the tokens of each iteration and those that the prompt foretold. It leaves alone
the texts that the file has with all of this.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from benchmarking.tasks import TASKS, task_prompts

import tokenswift_jax as ts
from tokenswift_jax.engine.heads_foresight import HeadsForesight
from tokenswift_jax.engine.session import Session
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.features import features_for
from tokenswift_jax.speculate.plans import speculative_plans

NODES = (1, 3, 7)


def record(model: ts.Model, prompt: list[int], temperature: float, tokens: int) -> dict[str, Any]:
    """One text with its heads."""
    sampling = ts.SamplingConfig(temperature=temperature, seed=1)
    requests = batch_of([prompt], sampling, max_new_tokens=tokens)
    session = Session(model, requests, ts.SpeculationConfig("autoregressive"))
    plans = speculative_plans(model.config, ts.SpeculationConfig(), features_for([sampling]), jax.default_backend())
    foresight = HeadsForesight(model, plans)
    prefill = session.engine.prefill(requests, [[]], keep_hidden=True)
    while not prefill.finished:
        prefill.advance()
    foresight.count(prefill, session.engine.programs, 1)
    fused = {named.node_budget: named for named in plans if named.schedule == "fused"}
    counted = {nodes: foresight.tokens_an_iteration(fused[nodes]) for nodes in NODES}
    texts, heads = [], {}
    for nodes in NODES:
        session = Session(model, requests, ts.SpeculationConfig("tokenswift", "fused", node_budget=nodes))
        logs = [step.rows[0].log for step in session]
        texts.append(np.concatenate([log.token_ids for log in logs]).tolist())
        starts = np.flatnonzero(np.concatenate([log.offsets for log in logs]) == 0).tolist()
        heads[nodes] = [after - start for start, after in itertools.pairwise([*starts, tokens])]
    assert texts[0] == texts[1] == texts[2]
    return {"prompt": prompt, "ids": texts[0], "heads": heads, "counted": counted}


def main(argv: list[str] | None = None) -> int:
    """Adds to the file after every text; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON file: texts by name, the temperature is a name's last word")
    parser.add_argument("--model", default="smollm2", help="checkpoint with draft heads")
    parser.add_argument("--books", type=Path, nargs="+", required=True, help="text files")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--length", type=int, default=1024, help="tokens of a task's prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a task's text")
    options = parser.parse_args(argv)
    model = ts.load(options.model)
    texts: dict[str, Any] = json.loads(options.file.read_text(encoding="utf-8"))
    asked = {name: (text["prompt"], len(text["ids"])) for name, text in texts.items()}
    for book, task, temperature in itertools.product(options.books, options.tasks, options.temperatures):
        prompts = task_prompts(model, [book], task, options.length, 1)
        asked[f"{task}, {book.stem}, {options.length}, {temperature}"] = prompts.of_round(0), options.tokens
    for name in [name for name in asked if "heads" not in texts.get(name, {})]:
        prompt, tokens = asked[name]
        texts[name] = record(model, prompt, float(name.split()[-1]), tokens)
        options.file.write_text(json.dumps(texts, separators=(",", ":")) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
