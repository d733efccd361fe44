"""RoPE of a GGUF file in the words of config.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tokenswift_jax.checkpoint.gguf.fields import Fields

# Llama 3.1, 3.2 and 3.3; their conversion to GGUF keeps the divisors of the frequencies only.
_LENGTH = "original_max_position_embeddings"
_LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, _LENGTH: 8192}
_EQUAL = 1e-5  # relative; the divisors are stored in float32


def rope_scaling(fields: Fields, theta: float, positions: int, divisors: np.ndarray | None) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json; None for plain RoPE.

    Args:
      fields: the architecture's metadata; this function takes all of `rope.scaling`.
      theta: base of the frequencies.
      positions: the file's context length.
      divisors: the tensor `rope_freqs.weight`, one divisor per frequency, if the file has one.

    Raises:
      UserError: a kind of scaling, or a value, that config.json's `linear`, `llama3` and `yarn` cannot express.
    """
    kind = fields.text("rope.scaling.type")
    factor = fields.number("rope.scaling.factor") or fields.number("rope.scale_linear") or 1.0
    original = fields.whole("rope.scaling.original_context_length")
    fields.ignore("rope.scaling.finetuned")
    betas = {f"beta_{end}": fields.number(f"rope.scaling.yarn_beta_{end}") for end in ("fast", "slow")}
    fields.neutral("rope.scaling.attn_factor", 1)
    fields.neutral("rope.scaling.yarn_attn_factor", 1)
    fields.neutral("rope.scaling.yarn_ext_factor", 1, -1)
    fields.neutral("rope.scaling.yarn_log_multiplier", 0)
    if kind not in (None, "none", "linear", "yarn"):
        raise fields.error(f"states rope.scaling.type {kind!r}; known: none, linear, yarn")
    scaled = kind == "yarn" or (kind != "none" and factor != 1)
    if divisors is not None and not np.all(divisors == 1):
        if scaled:
            raise fields.error("has both rope_freqs.weight and rope.scaling; only one of them can be expressed")
        return _llama3(fields, theta, divisors)
    if not scaled:
        return None
    if kind != "yarn":
        return {"rope_type": "linear", "factor": factor}
    given = {name: value for name, value in betas.items() if value is not None}
    return {"rope_type": "yarn", "factor": factor, _LENGTH: original or positions} | given


def _llama3(fields: Fields, theta: float, divisors: np.ndarray) -> dict[str, Any]:
    """The `llama3` parameters that give these divisors.

    Between the two cut-offs, 1/divisor is linear in the number of turns that a position makes, so the divisors there
    give the parameters where they are not Meta's own: one gives the length, two also give the ratio of the cut-offs.
    """
    turns = theta ** (-np.arange(len(divisors)) / len(divisors)) / (2 * math.pi)  # per position
    factor = float(divisors.max())
    between = (divisors > 1) & (divisors < factor)
    share = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
    tried = [_LLAMA3]
    if not between.any():
        plain = turns[divisors == 1]
        tried.append(_LLAMA3 | _length(math.ceil(4 / plain.min()) if plain.size else math.floor(1 / turns.max())))
    else:
        tried.append(_LLAMA3 | _length(float(np.mean((3 * share + 1) / turns[between]))))
    if between.sum() > 1:
        slope, offset = np.polyfit(turns[between], share, 1)
        if slope > 0 > offset:
            length = _length(-slope / offset)  # that of a low_freq_factor of 1
            low, high = (float(length[_LENGTH] * (cut - offset) / slope) for cut in (0, 1))
            tried.append({"low_freq_factor": low, "high_freq_factor": high} | length)
    for parameters in tried:
        if np.allclose(_divisors(turns, factor, **parameters), divisors, rtol=_EQUAL, atol=0):
            return {"rope_type": "llama3", "factor": factor} | parameters
    raise fields.error("has a rope_freqs.weight that no RoPE of type llama3 gives; other frequencies are not supported")


def _length(positions: float) -> dict[str, Any]:
    return {_LENGTH: max(1, round(positions))}


def _divisors(
    turns: np.ndarray,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> np.ndarray:
    share = (original_max_position_embeddings * turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
    share = np.clip(share, 0, 1)
    return 1 / ((1 - share) / factor + share)
