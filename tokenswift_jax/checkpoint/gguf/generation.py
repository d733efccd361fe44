"""generation_config.json from a GGUF file: the ids that end a text, and the sampling that its author recommends."""

from __future__ import annotations

from typing import Any

from tokenswift_jax.checkpoint.gguf.container import Container
from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.vocabulary import Vocabulary

# llama.cpp's name -> HF's, for values that mean the same in both.
_NUMBERS = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
# Samplers that HF lacks -> the keys that change nothing while the sampler is off (0).
_FOREIGN = {"xtc_probability": ("xtc_threshold",), "mirostat": ("mirostat_tau", "mirostat_eta")}
_OFF = -1e9  # llama.cpp reads a negative value as off


def generation_config(container: Container, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """The generation_config.json; without recommended sampling, it leaves the sampling to its reader."""
    config: dict[str, Any] = {}
    if vocabulary is not None:
        ends = vocabulary.ends
        config |= {"bos_token_id": vocabulary.roles.get("bos"), "pad_token_id": vocabulary.roles.get("padding")}
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    config |= _sampling(Fields(container.path, container.metadata, "general.sampling."))
    return {name: value for name, value in config.items() if value is not None}


def _sampling(fields: Fields) -> dict[str, Any]:
    """The recommended settings in HF's words; the reader of generation_config.json names the keys that have none."""
    chosen: dict[str, Any] = {name: fields.number(key, _OFF) for key, name in _NUMBERS.items()}
    chosen["top_k"] = _whole(fields, "top_k")
    window = _whole(fields, "penalty_last_n")
    if window == 0:
        chosen["repetition_penalty"] = None
    elif window is not None and window > 0 and chosen["repetition_penalty"] is not None:
        chosen["penalty_window"] = window
    for name in ("top_k", "min_p"):
        chosen[name] = None if chosen[name] is None else max(0, chosen[name])
    chosen["top_p"] = None if chosen["top_p"] is None else min(1, chosen["top_p"])
    foreign: dict[str, Any] = {}
    for name, details in _FOREIGN.items():
        foreign[name] = fields.number(name) or None
        if foreign[name] is None:
            fields.ignore(*details)
    chosen = {name: value for name, value in (chosen | foreign).items() if value is not None}
    unknown = fields.rest()
    if not chosen:
        return unknown
    if chosen.get("temperature", 1) <= 0:
        del chosen["temperature"]
        return {"do_sample": False} | chosen | unknown
    return {"do_sample": True} | chosen | unknown


def _whole(fields: Fields, name: str) -> int | None:
    """A whole number of either sign; None if the key is absent."""
    value = fields.number(name, _OFF)
    if value is not None and not value.is_integer():
        raise fields.error(f"cannot be used: general.sampling.{name} is {value!r}")
    return None if value is None else int(value)
