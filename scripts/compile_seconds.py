"""Measures the compilation before the first text of a run, with no compiled program on disk.

    python scripts/compile_seconds.py --model /path/of/SmolLM2-135M-Instruct

Wall seconds depend on how busy the machine is; the seconds of its cores in this process hardly do.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time

import jax

import tokenswift_jax as ts
from tokenswift_jax.speculation import MODES

PROMPT = "Write a short story about a lighthouse keeper who finds a map."


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint directory or hub id; the bundled demo without")
    parser.add_argument("--mode", choices=MODES, default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    return parser.parse_args(argv)


class Clock:
    """A `Report` that prints the wall seconds and the cores' seconds of each compilation."""

    def __init__(self) -> None:
        """Begins with no compilation."""
        self.wall = self.cores = 0.0
        self._begun: dict[str, tuple[float, float]] = {}

    def __call__(self, phase: str, done: int, total: int, unit: str) -> None:
        """Takes one report (`progress_report.Report`)."""
        now = time.perf_counter(), time.process_time()
        if not phase.startswith("compiling"):
            return
        if done < total:
            self._begun[phase] = now
            return
        wall, cores = (end - begun for end, begun in zip(now, self._begun.pop(phase), strict=True))
        self.wall, self.cores = self.wall + wall, self.cores + cores
        print(f"{phase:50} {wall:6.2f} s, {cores:6.2f} s of the cores", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    arguments, clock = parse_arguments(argv), Clock()
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        model = ts.load(arguments.model)
        speculation = ts.SpeculationConfig(mode=arguments.mode)
        ts.generate(model, PROMPT, None, speculation, max_new_tokens=arguments.max_new_tokens, report=clock)
    except ts.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'all of them':50} {clock.wall:6.2f} s, {clock.cores:6.2f} s of the cores")
    print(
        f"{os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}, jax {jax.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
