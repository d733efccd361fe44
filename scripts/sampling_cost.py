"""What drawing costs: measured here, and computed as a share of a step's memory traffic for models of the field.

    python scripts/sampling_cost.py

Measured are milliseconds of the draws of all rows of a step on this machine's device, noise included, next to those of
temperature 0, which only looks for the highest logit; their nucleus is so broad that every row is searched whole.
Computed, and measured nowhere, are the bytes that the draws of 64 rows move between a GPU's memory and its second-level
cache, where a pass reads the logits once (XLA fuses penalty, filters and noise into it): as a share of what the whole
step must move (scripts/hardware/roofline.py). They are computed twice: where the few highest scores of every row decide
(sample/block_topk.py; top-k up to 128, a nucleus of about as many tokens), and where no row's do. They are taken out
8 MB at a time and searched, some dozen passes that the second-level cache serves (A100: 40 MB, H200: 50 MB).
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from benchmarking.environment import describe_environment
from hardware import roofline, shapes
from hardware.sampling import CASES, milliseconds

from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sampling import SamplingConfig

MODELS = ("Llama-3.1-8B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-14B")
LENGTHS = (4096, 131072)
ROWS, FLOAT = 64, 4


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["64x152064", "4x4096"], help="ROWSxVOCABULARY to measure")
    parser.add_argument("--repeats", type=int, default=9, help="runs of which the median is taken")
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/<date>-sampling-cost.json)")
    return parser.parse_args(argv)


def passes(config: SamplingConfig, few_decide: bool) -> int:
    """Times that a step's draws read the logits, or write their processed form, on a GPU."""
    features, count = features_of(config), 1  # the draw
    if features == SamplingFeatures.FILTERED:
        count += 2  # processed scores are written, and the peaks of blocks found on the way
        count += 1  # the few are picked: one in 37, but by 4 bytes of the 32 or more that are read at once
        count += config.top_p is not None and config.top_k is None  # all weights are summed
        count += config.eta_cutoff is not None
        if not few_decide:
            count += 2  # rows are read and written together; searching them reads what is in the cache
    elif features == SamplingFeatures.SAMPLED:
        count += 1  # the highest, which min-p's threshold follows
    return count


def share_of_step(model: str, length: int, config: SamplingConfig, few_decide: bool) -> float:
    """Bytes of the draws of 64 rows over those of the verify step in bfloat16, the logits' one reading in both."""
    shape = shapes.config_of(model)
    step = roofline.step_cost("verify-64", shape, length).bytes
    return passes(config, few_decide) * ROWS * shape.vocab_size * FLOAT / step


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each figure and writes the JSON file."""
    arguments = parse_arguments(argv)
    default = Path(__file__).parents[1] / "benchmarks" / f"{datetime.date.today()}-sampling-cost.json"
    measured: list[dict[str, Any]] = []
    for shape in arguments.shape:
        rows, vocab = map(int, shape.split("x"))
        for name, config in CASES.items():
            taken = milliseconds(rows, vocab, config, arguments.repeats)
            measured.append({"rows": rows, "vocab": vocab, "case": name, "milliseconds": round(taken, 3)})
            print(f"measured here: {rows} rows of {vocab} tokens, {name}: {taken:.3f} ms", flush=True)
    computed: list[dict[str, Any]] = []
    for model in MODELS:
        for length in LENGTHS:
            for name, config in CASES.items():
                row = {"model": model, "length": length, "rows": ROWS, "case": name}
                for few in (True, False) if features_of(config) == SamplingFeatures.FILTERED else (True,):
                    share = share_of_step(model, length, config, few)
                    row |= {"few_decide": few, "passes": passes(config, few)}
                    computed.append({**row, "share_of_step_bytes": round(share, 4)})
                    how = f"{name}{'' if few else ', all scores searched'}"
                    print(f"computed: {model}, 64 rows at {length}, {how}: {share:.1%} of the step's bytes", flush=True)
    document = {"environment": describe_environment(), "measured": measured, "computed": computed}
    (arguments.output or default).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
