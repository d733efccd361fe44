"""Profiles one decode: host work per token, and the device's slowest operations with where they come from.

    python scripts/profile_host.py --mode tokenswift --prefix 8192 --temperature 1

An operation's time is its median times how often a pass runs it: medians stand a loaded machine. Operations that hold
others (a while loop of attention blocks) are listed with them, so that the column does not add up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import jax
from benchmarking.hosting import Trace, origins, profile, stream_text
from benchmarking.texts import passages_of_files, passages_of_the_model

import tokenswift_jax as ts
from tokenswift_jax.engine import compile_cache
from tokenswift_jax.speculation import MODES


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory or hub id; the bundled demo without")
    parser.add_argument("--mode", choices=[mode for mode in MODES if mode != "auto"], default="autoregressive")
    parser.add_argument("--schedule", choices=("fused", "partial"), default="fused", help="of mode tokenswift")
    parser.add_argument("--node-budget", type=int, default=3)
    parser.add_argument("--prefix", type=int, default=1024, help="tokens before the generated ones")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompt-file", type=Path, help="a book; without: what the model itself writes")
    parser.add_argument("--top", type=int, default=40, help="operations listed")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Profiles and prints; returns the exit status."""
    arguments = parse_arguments(argv)
    try:
        print(run(arguments))
    except ts.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> str:
    """The report."""
    # Programs from the persistent cache carry the names of whoever compiled them first.
    jax.config.update("jax_enable_compilation_cache", False)
    model = ts.load(arguments.model)
    if arguments.prompt_file:
        prompts = passages_of_files(model, [arguments.prompt_file], arguments.prefix, 1)
    else:
        prompts = passages_of_the_model(model, arguments.prefix, 1, seed=0)
    speculation = ts.SpeculationConfig(mode=arguments.mode)
    if arguments.mode != "autoregressive":
        schedule = arguments.schedule if arguments.mode == "tokenswift" else "auto"
        speculation = ts.SpeculationConfig(mode=arguments.mode, schedule=schedule, node_budget=arguments.node_budget)
    prompt, tokens = prompts.of_round(0), arguments.new_tokens
    sampling = ts.SamplingConfig(temperature=arguments.temperature)
    stream_text(model, prompt, speculation, tokens, sampling)
    plain = stream_text(model, prompt, speculation, tokens, sampling)
    with profile() as traces:
        profiled = stream_text(model, prompt, speculation, tokens, sampling)
    begin, end = traces[0].window
    idle = traces[0].idle_share * (end - begin) / 1e9 / profiled.tokens
    lines = [
        f"{arguments.mode}, {arguments.prefix:,} tokens before: {1e3 * plain.seconds / plain.tokens:.3f} ms/token, "
        f"{1e3 * profiled.seconds / profiled.tokens:.3f} under the profiler, "
        f"{plain.tokens / plain.iterations:.2f} tokens a pass",
        f"host: the device idles {1e6 * idle:.1f} us a token, {idle * plain.tokens / plain.seconds:.2%} of its time; "
        f"the calling thread is busy {plain.thread_seconds / plain.seconds:.2%} of it",
    ]
    return "\n".join(lines + _slowest(traces[0], profiled.iterations, arguments.top))


def _slowest(trace: Trace, passes: int, top: int) -> list[str]:
    known = origins(compile_cache.kept())
    rows = [
        (statistics.median(times) * len(times) / passes, len(times) / passes, statistics.median(times), name)
        for name, times in trace.thunks.items()
        if name in known and len(times) >= passes / 2
    ]
    listed = [f"{'us a pass':>10} {'calls':>6} {'us a call':>10}  operation"]
    for total, calls, median, name in sorted(rows, reverse=True)[:top]:
        listed.append(f"{total:10.1f} {calls:6.1f} {median:10.1f}  {name:<36} {known[name]}")
    return listed


if __name__ == "__main__":
    sys.exit(main())
