"""Texts of a model with random weights, end to end: the time that a person waits for a model of these shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tokenswift_jax as ts
from tokenswift_jax.hardware import steps
from tokenswift_jax.hardware.filled_steps import random_model
from tokenswift_jax.models.config import ModelConfig

PROMPT = 4096  # random token ids


@dataclass(frozen=True)
class Case:
    """One call of `generate`.

    Attributes:
      mode: of `SpeculationConfig`.
      temperature: at 1, random weights draw from nearly all tokens, so that no draft is accepted; at 0 the text soon
        repeats itself, so that most n-grams are.
      tokens: to generate, of each row.
      rows: prompts of the batch.
    """

    mode: str
    temperature: float
    tokens: int
    rows: int = 1


CASES = (
    Case("autoregressive", 1.0, 20480),
    Case("auto", 1.0, 4096),
    Case("auto", 0.0, 8192),
    Case("autoregressive", 0.0, 2048),
    Case("autoregressive", 1.0, 1024, rows=8),
)


def long_texts(
    config: ModelConfig, dtype: Any, prompt: int, most_tokens: int, report: Callable[[str], None]
) -> Iterator:
    """A row for each of the `CASES`; a case that fails has its error and costs no other.

    Args:
      config: of the model.
      dtype: of its weights.
      prompt: tokens of a prompt.
      most_tokens: of a text; fewer where the case asks for fewer.
      report: called with a line of progress.
    """
    model = _model(config, dtype)
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab_size, (max(case.rows for case in CASES), prompt)).tolist()
    first: dict[float, list[int]] = {}
    for case in CASES:
        tokens = min(case.tokens, most_tokens)
        about = {"mode": case.mode, "temperature": case.temperature, "rows": case.rows, "prompt_tokens": prompt}
        report(f"text: {case.mode}, temperature {case.temperature}, {case.rows} x {tokens:,} tokens")
        begun = time.perf_counter()
        try:
            out: Any = ts.generate(
                model,
                prompts[: case.rows] if case.rows > 1 else prompts[0],
                ts.SamplingConfig(temperature=case.temperature),
                ts.SpeculationConfig(mode=case.mode),
                max_new_tokens=tokens,
                ignore_eos=True,
            )
        except Exception as error:
            yield about | {"refused": f"{type(error).__name__}: {error}"[:1000]}
            continue
        wall = time.perf_counter() - begun
        rows = out if case.rows > 1 else [out]
        kept = first.setdefault(case.temperature, rows[0].token_ids)
        pairs = enumerate(zip(rows[0].token_ids, kept, strict=False))
        shared = min(len(rows[0].token_ids), len(kept))
        yield about | {
            "tokens": sum(row.generated_tokens for row in rows),
            "tokens_a_second": sum(row.tokens_per_second for row in rows),
            "tokens_a_pass": rows[0].mean_accepted_length,
            "leading_tokens_of_the_first": next((i for i, (one, other) in pairs if one != other), shared),
            "compile_seconds": rows[0].compile_seconds,
            "prefill_seconds": rows[0].prefill_seconds,
            "decode_seconds": rows[0].decode_seconds,
            "wall_seconds": wall,
            "latency": rows[0].latency,
            "schedule_trace": rows[0].schedule_trace,
            "plan_reason": rows[0].plan_reason,
        }


def _model(config: ModelConfig, dtype: Any) -> ts.Model:
    filled = random_model(config, dtype)
    graph, _ = steps.decoder_shapes(config, dtype, filled.join)
    return ts.Model(
        path=Path("random weights"),
        config=config,
        tokenizer=None,
        generation_config={},
        graphdef=graph,
        params=jax.block_until_ready(filled.params),
        dtype=jnp.dtype(dtype).name,
        eos_token_ids=(),
        rope_override=None,
    )
