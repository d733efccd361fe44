"""Resolves the RoPE parameters of HF's config.json, in either spelling, to a `RopeConfig`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenswift_jax.errors import UserError
from tokenswift_jax.models.config import RopeConfig

_KNOWN_TYPES = ("default", "linear", "llama3", "yarn")
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_NUMBERS = (
    *("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
)
# Positive numbers that float32 holds: rotations and norms are computed in it.
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_KNOWN_FIELDS = {*_NUMBERS, "rope_type", "type", "truncate", "partial_rotary_factor", "finetuned"}
# transformers reads 0 as if the field were absent.
_OFF_AT_ZERO = {"mscale", "mscale_all_dim", "beta_fast", "beta_slow"}
# Fields of one type that have no effect in another.
_OF_TYPE = {
    "default": (),
    "linear": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale"),
        *("mscale_all_dim", "truncate"),
    ),
}
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_LAST_POSITION = 2**31 - 1  # positions are int32
_DEFAULT_THETA = 10_000.0  # transformers' default_theta, the same for every family here
_YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}  # defaults of absent fields: the YaRN paper's beta and alpha
_UNUSED = {field.name: None for field in dataclasses.fields(RopeConfig) if field.name not in ("type", "theta")}


def rope_parameters(config: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """The RoPE fields of a config.json as one flat dict in transformers 5's spelling, without nulls, each one checked.

    `rope_scaling` (transformers 4) overrides `rope_parameters`, as in transformers; `rope_theta` may be inside or
    beside it. The function accepts parameters nested by layer type if those of all layers agree.

    Raises:
      UserError: the parameters are not an object, are of an unknown type, have an unknown or impossible field, or
        differ by layer type.
    """
    fields = stated_parameters(config)
    kind = fields["rope_type"]
    if kind == "dynamic":
        raise UserError(
            "RoPE type 'dynamic' is not supported: its angles depend on how the text was chunked, so no cache can "
            f"be exact; set another in config.json, or with rope_override where text is generated; known: "
            f"{', '.join(_KNOWN_TYPES)}",
            arguments=("rope_override",),
        )
    if kind not in _KNOWN_TYPES:
        raise UserError(f"unknown RoPE type {kind!r}; known: {', '.join(_KNOWN_TYPES)}")
    unknown = sorted(set(fields) - _KNOWN_FIELDS)
    if unknown:
        raise UserError(f"unknown RoPE field {', '.join(unknown)}; known: {', '.join(sorted(_KNOWN_FIELDS))}")
    beside = config.get("original_max_position_embeddings")
    if beside is not None and kind in ("linear", "llama3", "yarn"):
        fields["original_max_position_embeddings"] = beside
    _check_values(fields)
    if kind in ("llama3", "yarn"):
        fields.setdefault("original_max_position_embeddings", max_positions)
    if kind == "yarn" and fields.get("factor", 1.0) is None:
        fields["factor"] = max_positions / fields["original_max_position_embeddings"]
    return fields


def stated_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The RoPE fields that a config.json has, unchecked, as one flat dict with `rope_type` and `rope_theta`.

    One null remains, that of the factor of yarn, which asks for the ratio of the lengths.

    Raises:
      UserError: the parameters are not an object, or differ by layer type.
    """
    raw = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if isinstance(raw, Mapping) and raw and set(raw) <= _LAYER_TYPES:
        raw = _of_all_layers(raw, config)
    if not isinstance(raw, Mapping):
        raise UserError(f"the RoPE parameters in config.json are {raw!r}; they must be an object or null")
    fields = {name: value for name, value in raw.items() if value is not None}
    fields = {name: value for name, value in fields.items() if name not in _OFF_AT_ZERO or value != 0}
    kind = fields.pop("type", "default")
    fields["rope_type"] = fields.get("rope_type", kind)
    theta = config.get("rope_theta")
    fields.setdefault("rope_theta", _DEFAULT_THETA if theta is None else theta)
    if fields["rope_type"] == "yarn":
        if "truncate" in raw and raw["truncate"] is None:
            fields["truncate"] = False  # transformers' meaning of null; without the field it truncates
        if "factor" in raw and raw["factor"] is None:
            fields["factor"] = None
    return fields


def rope_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_theta` and, where the file states it, the trained length of RoPE parameters of any type, unchecked.

    Raises:
      UserError: as `stated_parameters`.
    """
    fields = stated_parameters(config)
    beside = config.get("original_max_position_embeddings")
    if beside is not None and fields["rope_type"] != "default":
        fields["original_max_position_embeddings"] = beside
    return {name: fields[name] for name in ("rope_theta", "original_max_position_embeddings") if name in fields}


def _of_all_layers(nested: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The parameters that all layers share, of those by layer type; null may stand for types that no layer has."""
    kinds = config.get("layer_types")
    if config.get("model_type") == "llama":
        used = {"full_attention"}
    else:
        used = {kind for kind in kinds if isinstance(kind, str)} if isinstance(kinds, list) else set(nested)
    given = [value for value in nested.values() if value is not None]
    if not given or any(value != given[0] for value in given) or any(nested.get(kind) is None for kind in used):
        raise UserError("rope_parameters in config.json differ by layer type; only one setting for all layers is known")
    return given[0]


def _check_values(fields: Mapping[str, Any]) -> None:
    if fields.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("partial_rotary_factor is not 1; only rotation of whole heads is known")
    if not isinstance(fields.get("truncate", True), bool):
        raise UserError(f"RoPE field truncate is {fields['truncate']!r}; it must be true or false")
    for name in _NUMBERS:
        value = fields.get(name, 1.0)
        if value is None:
            continue
        positive_number(f"RoPE field {name}", value)
    original = fields.get("original_max_position_embeddings", 1)
    if original != int(original):
        raise UserError(f"RoPE field original_max_position_embeddings is {original!r}; it must be a whole number")


def positive_number(name: str, value: Any) -> float:
    """The value, a positive number that float32 holds.

    Raises:
      UserError: it is anything else; `name` says what it is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{name} is {value!r}; it must be a positive number")
    if not _LEAST <= value <= _MOST:
        shown, size = repr(value), "large" if value > _MOST else "small"
        shown = shown if len(shown) <= 20 else f"{shown[:20]}..."
        raise UserError(f"{name} is {shown}, which is too {size} for a float32 number")
    return float(value)


def unused_fields(kind: str) -> set[str]:
    """The RoPE fields without effect on a known type."""
    return {name for names in _OF_TYPE.values() for name in names} - {*_OF_TYPE[kind]}


def longest_text(config: Mapping[str, Any], max_positions: int) -> int:
    """The longest text in positions: `max_position_embeddings`, or factor times the trained length if that is more.

    The trained length is `original_max_position_embeddings`, beside or inside the RoPE parameters, else
    `max_position_embeddings`. The parameters are those that `rope_config` accepts.
    """
    fields = rope_parameters(config, max_positions)
    if fields["rope_type"] == "default":
        return max_positions
    trained = fields.get("original_max_position_embeddings", max_positions)
    return max(max_positions, int(min(fields["factor"] * trained, _LAST_POSITION)))


def rope_config(config: Mapping[str, Any], max_positions: int) -> RopeConfig:
    """Resolves a config.json's RoPE as transformers computes it (`modeling_rope_utils`).

    Args:
      config: the parsed config.json.
      max_positions: its `max_position_embeddings`, the fallback of `original_max_position_embeddings`.

    Raises:
      UserError: as `rope_parameters`, or a field is missing or does not fit the others.
    """
    fields = rope_parameters(config, max_positions)
    kind = fields["rope_type"]
    missing = [name for name in _REQUIRED[kind] if name not in fields]
    if missing:
        raise UserError(f"RoPE type {kind!r} needs {', '.join(missing)}")
    settings: dict[str, Any] = {}
    if kind != "default":
        settings["factor"] = float(fields["factor"])
    if kind in ("llama3", "yarn"):
        settings["original_max_position"] = int(fields["original_max_position_embeddings"])
    if kind == "llama3":
        low, high = float(fields["low_freq_factor"]), float(fields["high_freq_factor"])
        if low >= high:
            raise UserError(f"high_freq_factor {high} must be greater than low_freq_factor {low}")
        settings |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        settings |= {name: float(fields.get(name, beta)) for name, beta in _YARN_BETAS.items()}
        settings |= {"attention_factor": _attention_factor(fields), "truncate": bool(fields.get("truncate", True))}
    theta = float(fields["rope_theta"])
    if kind == "yarn" and theta <= 1:
        raise UserError(f"rope_theta is {theta:g}; for RoPE type yarn it must be above 1")
    return RopeConfig(**(_UNUSED | settings), type=kind, theta=theta)


def _attention_factor(fields: Mapping[str, Any]) -> float:
    if "attention_factor" in fields:
        return float(fields["attention_factor"])

    def temperature(mscale: float) -> float:
        factor = fields["factor"]
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    if "mscale" in fields and "mscale_all_dim" in fields:
        return temperature(fields["mscale"]) / temperature(fields["mscale_all_dim"])
    return temperature(1.0)
