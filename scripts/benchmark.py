"""Measures speed: one JSON row a setting into a file, a table on stdout.

    python scripts/benchmark.py --prompt-file ../shared/corpus/heldout/*.txt
    python scripts/benchmark.py --sections host,capacity --rounds 5

Sections: `speed` (modes against plain decoding and against transformers' generate), `auto-long` (what `auto` costs over
a long text, whatever the text), `capacity` (a large cache of which little is used against a small one), `host` (host
work per token, by profiling).

Figures are medians of --rounds runs with their smallest and largest value. The runs of a setting are interleaved: every
contender runs once a round on the same passage, and a ratio is the median of the rounds' ratios. Compilation is done in
a warm-up and excluded, prefill is stated apart. Run it on a machine that does nothing else: rows carry the load.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from benchmarking.environment import describe_environment, load_average
from benchmarking.sections import SECTIONS
from benchmarking.settings import Settings
from benchmarking.table import format_table
from benchmarking.texts import passages_of_files, passages_of_the_model
from benchmarking.transformers_generate import TransformersModel, is_available

import tokenswift_jax as ts
from tokenswift_jax.paths import check_writable
from tokenswift_jax.speculation import MODES

ROOT = Path(__file__).resolve().parent.parent
# CPU cores pay for every row of a verify, accelerators hardly.
_NODE_BUDGET_CPU, _NODE_BUDGET_ELSEWHERE = 3, 63
_QUICK = {"prefixes": (64,), "new_tokens": 24, "long_tokens": 96, "capacities": (1024, 4096)}
_FULL = {"prefixes": (1024, 8192), "new_tokens": 512, "long_tokens": 2048, "capacities": (4096, 131072)}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory or hub id; the bundled demo without")
    parser.add_argument("--dtype", help="of weights and activations")
    parser.add_argument("--sections", type=_names(SECTIONS), default=tuple(SECTIONS), help="comma separated")
    parser.add_argument("--modes", type=_names(MODES), default=("autoregressive", "tokenswift", "ngram", "auto"))
    parser.add_argument("--prefixes", type=_numbers(int), help="tokens before the generated ones, e.g. 1024,8192")
    parser.add_argument("--temperatures", type=_numbers(float), default=(0.0, 1.0))
    parser.add_argument("--new-tokens", type=int, help="a run of speed, capacity and host")
    parser.add_argument("--node-budget", type=int, help="of tokenswift and ngram; `auto` chooses for itself")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of every contender")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompt-file", type=Path, nargs="+", help="books; without: what the model itself writes")
    parser.add_argument("--no-transformers", action="store_true", help="leave out transformers' generate")
    parser.add_argument("--output", type=Path, help="JSON lines are appended; default benchmarks/DATE-PLATFORM.jsonl")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the rows as they come, prints the table; returns the exit status."""
    try:
        rows = run(parse_arguments(argv))
    except ts.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(rows))
    return 0


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all sections asked for, which are also in the output file."""
    output = arguments.output
    if output is None:
        day = datetime.now(UTC).date().isoformat()
        output = ROOT / "benchmarks" / f"{day}-{jax.default_backend()}.jsonl"
        output.parent.mkdir(exist_ok=True)
    check_writable(output, "--output")
    settings = make_settings(arguments)
    model = settings.model
    common = describe_environment() | {
        "model": str(arguments.model or "the bundled demo"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": model.dtype,
        "quick": arguments.quick,
        "load_average_at_start": load_average(),
    }
    rows: list[dict[str, Any]] = []

    def emit(row: dict[str, Any]) -> None:
        rows.append(common | {"load_average": load_average()} | row)
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1], allow_nan=False) + "\n")

    for name in arguments.sections:
        SECTIONS[name](settings, emit)
    return rows


def make_settings(arguments: argparse.Namespace) -> Settings:
    """Loads the models and the prompts.

    Raises:
      UserError: whatever is wrong with the arguments, the checkpoint or the prompt files.
    """
    sizes: dict[str, Any] = dict(_QUICK if arguments.quick else _FULL)
    sizes |= {"prefixes": arguments.prefixes} if arguments.prefixes else {}
    sizes |= {"new_tokens": arguments.new_tokens} if arguments.new_tokens is not None else {}
    for flag, value, least in (
        ("--rounds", arguments.rounds, 1),
        ("--new-tokens", sizes["new_tokens"], 3),
        ("--prefixes", min(sizes["prefixes"]), 1),
    ):
        if value < least:
            raise ts.UserError(f"{flag} {value}: at least {least}")
    model = ts.load(arguments.model, arguments.dtype)
    longest = max(sizes["prefixes"])
    if arguments.prompt_file:
        prompts = passages_of_files(model, arguments.prompt_file, longest, arguments.rounds)
    else:
        _report(f"writing {arguments.rounds} prompts of {longest:,} tokens with the model itself")
        prompts = passages_of_the_model(model, longest, arguments.rounds, arguments.seed)
    on_cpu = jax.default_backend() == "cpu"
    budget = arguments.node_budget
    if budget is None:
        budget = _NODE_BUDGET_CPU if on_cpu else _NODE_BUDGET_ELSEWHERE
    return Settings(
        model=model,
        prompts=prompts,
        other=_transformers(arguments, model, on_cpu),
        temperatures=arguments.temperatures,
        modes=arguments.modes,
        node_budget=budget,
        rounds=arguments.rounds,
        seed=arguments.seed,
        report=_report,
        **sizes,
    )


def _transformers(arguments: argparse.Namespace, model: Any, on_cpu: bool) -> TransformersModel | None:
    """The other side of the comparison: where torch is installed, and on the same kind of device."""
    if arguments.no_transformers or "speed" not in arguments.sections:
        return None
    if not on_cpu or not is_available():
        _report("transformers is left out: " + ("it would run on CPU" if not on_cpu else "torch is not installed"))
        return None
    return TransformersModel(model)


def _report(message: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {message}", file=sys.stderr, flush=True)


def _names(known: Any):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; known: {', '.join(known)}")
        return names

    return parse


def _numbers(kind: type):
    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a comma separated list of numbers") from None

    return parse


if __name__ == "__main__":
    sys.exit(main())
