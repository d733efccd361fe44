"""Times of steps on an H200 and an H100 before and after the changes to a GPU's programs: expected, not measured.

    python -m tokenswift_jax.hardware.expected_times benchmarks/2026-11-26-aot.json

It prints the table of docs/accelerators.md. A step takes the time of its bytes, of its matrix products' beginnings and
of its other kernels, each at the rate that the profile and the steps of an H200 showed
(benchmarks/2026-11-26-device-h200-contact-first.json). An H100 is taken to differ in its memory's bandwidth alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenswift_jax.hardware import roofline, shapes
from tokenswift_jax.hardware.steps import rows_of
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import attention_part

COPY = {"H200": 4.14e12, "H100": 3.0e12}  # bytes a second of a copy; the H100's as others have measured it
# Products of Llama-3.1-8B: 117.4 MB in 29.9 us and 33.6 MB in 10.1 us, 4.25e12 bytes a second after 2.2 us.
WEIGHTS, PRODUCT = 1.026, 2.2e-6  # of the copy's rate; seconds a product
# Plain steps after 16,384 and 126,976 tokens: 4.41e12 bytes a second of the cache. Attention of a layer and its merge
# take 7.8 us more than these bytes.
CACHE, ATTENTION = 1.065, 7.8e-6
OTHER = 1.1e-6  # seconds a kernel: the rest of a plain step of 5.26 ms, over 468 kernels
# Steps of 16 rows: what is left of those after 4,096 and 126,976 tokens.
ROWS_CACHE, ROWS_PRODUCT = 0.98, 3.8e-6
BEFORE = {  # nodes of an iteration at commit f44719e, with jax 0.11.2
    ("Llama-3.1-8B", "plain"): 757,
    ("Llama-3.1-8B", "verify-16"): 759,
    ("Qwen2.5-1.5B", "plain"): 554,
    ("Qwen2.5-1.5B", "verify-16"): 648,
}
LENGTHS = (4096, 16384, 65536, 126976)


def expected_seconds(
    device: str, config: ModelConfig, step: str, length: int, *, nodes: int, joined: bool, one_pass: bool
) -> float:
    """Seconds of an iteration.

    Args:
      device: of COPY.
      config: of the model.
      step: `plain` or `verify-N`.
      length: committed tokens.
      nodes: kernels and copies of an iteration.
      joined: whether q, k, v and gate, up are one product each.
      one_pass: whether the draft heads' logits come from the verification's product with the LM head.
    """
    rows = 1 if step == "plain" else rows_of(step)
    cache = attention_part(config, rows, length, 2)[0]
    head = 2 * config.hidden_size * config.vocab_size
    weights = roofline.step_cost(step, config, 0).bytes - attention_part(config, rows, 0, 2)[0]
    products = config.num_layers * (4 if joined else 7) + 1
    if rows > 1:
        products += config.num_draft_heads
        if not one_pass:
            weights, products = weights + head, products + 1
    others = nodes - products - 2 * config.num_layers
    of_cache, of_product = (CACHE, PRODUCT) if rows == 1 else (ROWS_CACHE, ROWS_PRODUCT)
    bytes_a_second = COPY[device]
    seconds = weights / (WEIGHTS * bytes_a_second) + cache / (of_cache * bytes_a_second)
    return seconds + products * of_product + config.num_layers * ATTENTION + others * OTHER


def before_and_after(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Lines of the table: device, model, step and, by length, milliseconds before and after.

    Args:
      rows: of `scripts/aot_report.py`, whole models for an H200 among them.
    """
    lines = []
    for device in COPY:
        for (model, step), before in BEFORE.items():
            config = shapes.config_of(model)
            (row,) = (r for r in rows if (r["target"], r["model"], r["step"]) == ("h200", model, step))
            after = row["launches"]["nodes"]
            cells = []
            for length in LENGTHS:
                old = expected_seconds(device, config, step, length, nodes=before, joined=False, one_pass=False)
                new = expected_seconds(device, config, step, length, nodes=after, joined=True, one_pass=True)
                cells.append(f"{1e3 * old:.2f} → {1e3 * new:.2f}")
            lines.append([device, model, step, f"{before} → {after}", *cells])
    return lines


if __name__ == "__main__":
    table = before_and_after(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    headings = ["device", "model", "step", "nodes", *(f"{length:,}" for length in LENGTHS)]
    for cells in (headings, ["---"] * len(headings), *table):
        print(f"| {' | '.join(cells)} |")
