"""Fields that rows of several sections share."""

from __future__ import annotations

from typing import Any

from benchmarking.rounds import Results, paired_ratios, same_leading_tokens
from benchmarking.texts import Prompts

PLAIN, BASELINE = "autoregressive", "transformers"


def setting(section: str, prompts: Prompts, temperature: float, seed: int) -> dict[str, Any]:
    """What was asked for."""
    return {
        "section": section,
        "prefix": len(prompts.passages[0]),
        "temperature": temperature,
        "seed": seed,
        "prompt": prompts.describe(),
    }


def comparison(results: Results, name: str, *, greedy: bool) -> dict[str, Any]:
    """How many times faster than the baselines of the same rounds, and how many leading tokens are plain decoding's.

    A sampled text of transformers draws from another generator, so that only greedy ones can be equal.
    """
    fields: dict[str, Any] = {}
    own = [run.ms_per_token for run in results.runs[name]]
    for other in (PLAIN, BASELINE):
        if other in results.runs and other != name:
            theirs = [run.ms_per_token for run in results.runs[other]]
            fields[f"speed_vs_{other}"] = paired_ratios(theirs, own)
    if PLAIN in results.runs and name != PLAIN and (greedy or not name.startswith(BASELINE)):
        fields["leading_tokens_equal_to_autoregressive"] = same_leading_tokens(results, name, PLAIN)
    return fields
