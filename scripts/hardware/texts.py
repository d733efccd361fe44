"""The bundled model's texts end to end: every schedule forced, each text audited and held against plain decoding's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tokenswift_jax as ts
from tokenswift_jax.cli.generate import DEMO_PROMPT
from tokenswift_jax.speculation import MODES

# A short text in an adaptive mode is decoded plainly while the mode measures, and proves nothing of verification.
_SCHEDULES = ("fused", "partial")
KINDS = (*MODES, *_SCHEDULES)
FORCED = ("autoregressive", "fused", "partial", "medusa", "selfspec", "ngram")


def written(
    kinds: Sequence[str], dtypes: Sequence[str | None], tokens: int, report: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """A row a text of so many tokens, in each type (None: the model's own here) and of each of the `KINDS`.

    `leading_tokens_of_the_first` counts tokens that a text shares with its type's first one: all of them in float32, up
    to a tie within rounding in narrower types, which the audit tells from an error.
    """
    for dtype in dtypes:
        model = ts.load(dtype=dtype)
        first: list[int] = []
        for kind in kinds:
            report(f"text: {model.dtype}, {kind}, {tokens:,} tokens")
            begun = time.perf_counter()
            out = ts.generate(
                model, DEMO_PROMPT, None, _speculation(kind), max_new_tokens=tokens, ignore_eos=True, audit=True
            )
            assert isinstance(out, ts.GenerationResult)
            first = first or out.token_ids
            yield {
                "mode": kind,
                "tokens": out.generated_tokens,
                "tokens_a_second": out.tokens_per_second,
                "tokens_a_pass": out.mean_accepted_length,
                "compile_seconds": out.compile_seconds,
                "wall_seconds": time.perf_counter() - begun,
                "text_dtype": out.dtype,
                "leading_tokens_of_the_first": _shared(out.token_ids, first),
                "audit": out.audit,
                "audit_failed": out.audit_failed,
            }


def _speculation(kind: str) -> ts.SpeculationConfig:
    if kind in _SCHEDULES:
        return ts.SpeculationConfig(mode="tokenswift", schedule=kind, draft_cache=512)
    return ts.SpeculationConfig(mode=kind, draft_cache=512)


def _shared(ids: list[int], others: list[int]) -> int:
    """Leading tokens that two texts share."""
    return next((i for i, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other), len(ids))
