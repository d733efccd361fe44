"""How well drafts over a table of blocks are accepted, beside drafts over single copied positions.

    python scripts/draft_granularity.py book.txt --tokens 1000

Both kinds of draft cache read as many slots; the table copies nothing. Measured are tokens per iteration of `partial`
(heads, without n-grams, which would hide the difference) and `selfspec` at temperature 0 and 1, and that every text is
the one of plain decoding. Nothing is timed. The longer the text is beside the draft cache, the more the choice weighs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking.environment import describe_environment
from benchmarking.runs import run_ours
from benchmarking.texts import Prompts, passages_of_files

import tokenswift_jax as ts
from tokenswift_jax.errors import UserError
from tokenswift_jax.model import Model


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, help="books or folders of *.txt")
    parser.add_argument("--model", help="checkpoint directory or hub id; the bundled demo without")
    parser.add_argument("--prefix", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--passages", type=int, default=1, help="prompts, of which means are taken")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens to generate after each")
    parser.add_argument("--draft-cache", type=int, default=512, help="slots that a draft reads")
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32, 64, 128], help="sizes of blocks")
    parser.add_argument("--node-budget", type=int, default=15, help="nodes of `partial`")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/<date>-draft-granularity.json)")
    return parser.parse_args(argv)


def measure(model: Model, prompts: Prompts, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a temperature, mode and granularity; `draft_block` None is the one that copies.

    Raises:
      AssertionError: a text that is not plain decoding's.
    """
    modes: dict[str, dict[str, Any]] = {
        "partial": {"mode": "tokenswift", "schedule": "partial", "ngram_k": 0, "node_budget": arguments.node_budget},
        "selfspec": {"mode": "selfspec"},
    }
    for temperature in (0.0, 1.0):
        sampling = ts.SamplingConfig(temperature=temperature)
        plain_config = ts.SpeculationConfig(mode="autoregressive")
        plain = [run_ours(model, p, sampling, plain_config, arguments.tokens).token_ids for p in prompts.passages]
        for name, fields in modes.items():
            for block in (None, *arguments.blocks):
                speculation = ts.SpeculationConfig(**fields, draft_cache=arguments.draft_cache, draft_block=block)
                decoded = iterations = 0
                for prompt, expected in zip(prompts.passages, plain, strict=True):
                    run = run_ours(model, prompt, sampling, speculation, arguments.tokens)
                    if run.token_ids != expected:
                        raise AssertionError(f"{name} with blocks of {block} wrote another text than plain decoding")
                    decoded, iterations = decoded + run.decoded_tokens, iterations + run.iterations
                yield {
                    "temperature": temperature,
                    "drafts": name,
                    "draft_block": block,
                    "iterations": iterations,
                    "tokens_per_iteration": round(decoded / iterations, 4),
                    "equal_to_plain_decoding": True,
                }


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns the process's exit status."""
    arguments = parse_arguments(argv)
    try:
        model = ts.load(arguments.model)
        prompts = passages_of_files(model, arguments.texts, arguments.prefix, arguments.passages)
        environment = describe_environment()
        rows = []
        for row in measure(model, prompts, arguments):
            rows.append(row)
            kind = "single positions" if row["draft_block"] is None else f"blocks of {row['draft_block']}"
            start = f"temperature {row['temperature']:g}  {row['drafts']:<8}  {kind:<16}"
            print(f"{start}  {row['tokens_per_iteration']:.3f} tokens per iteration", flush=True)
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        return 2
    asked = {name: getattr(arguments, name) for name in ("prefix", "tokens", "draft_cache", "node_budget")}
    report = {
        "environment": environment,
        "model": model.path.name,
        "prompts": prompts.describe(),
        **asked,
        "rows": rows,
    }
    output = arguments.output
    if output is None:
        output = Path("benchmarks") / f"{datetime.datetime.now(datetime.UTC).date()}-draft-granularity.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
