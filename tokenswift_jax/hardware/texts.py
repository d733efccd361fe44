"""Texts of the bundled model with every schedule forced, each audited and compared with plain decoding's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import tokenswift_jax as ts
from tokenswift_jax.cli.generate import DEMO_PROMPT

# An adaptive mode decodes a short text plainly while it measures, so such a text would not test verification.
KINDS = ("autoregressive", "fused", "partial")


def texts(dtype: str, tokens: int, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A row for each of the `KINDS`.

    `leading_tokens_of_the_first` counts the tokens that a text shares with plain decoding's: all of them in float32, up
    to a tie within rounding in narrower types; the audit tells a tie from an error.
    """
    model, first = ts.load(dtype=dtype), []
    for kind in KINDS:
        report(f"text: {model.dtype}, {kind}, {tokens:,} tokens")
        plain = kind == KINDS[0]
        drafting = ts.SpeculationConfig(draft_cache=512)
        speculation = drafting.with_mode(kind) if plain else drafting.with_mode("tokenswift", kind)
        begun = time.perf_counter()
        out = ts.generate(
            model,
            DEMO_PROMPT,
            None,
            speculation,
            max_new_tokens=tokens,
            ignore_eos=True,
            audit=True,
        )
        assert isinstance(out, ts.GenerationResult)
        first = first or out.token_ids
        pairs = enumerate(zip(out.token_ids, first, strict=True))
        yield {
            "mode": kind,
            "tokens": out.generated_tokens,
            "tokens_a_second": out.tokens_per_second,
            "tokens_a_pass": out.mean_accepted_length,
            "compile_seconds": out.compile_seconds,
            "wall_seconds": time.perf_counter() - begun,
            "text_dtype": out.dtype,
            "leading_tokens_of_the_first": next((i for i, (one, other) in pairs if one != other), len(first)),
            "audit": out.audit,
            "audit_failed": out.audit_failed,
        }
