"""generation_config.json from a GGUF file: the ids that end a text, and the sampling that its author recommends."""

from __future__ import annotations

from typing import Any

from tokenswift_jax.checkpoint.gguf.container import Container
from tokenswift_jax.checkpoint.gguf.fields import Fields
from tokenswift_jax.checkpoint.gguf.vocabulary import Vocabulary

# llama.cpp's name -> HF's. HF has no word for the last two; the reader of generation_config.json names such fields.
_NUMBERS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
    "xtc_probability": "xtc_probability",
    "mirostat": "mirostat",
}


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
    chosen: dict[str, Any] = {name: fields.number(key) for key, name in _NUMBERS.items()}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if not chosen:
        return {}
    if "top_k" in chosen:
        chosen["top_k"] = int(chosen["top_k"])
    for name in ("xtc_probability", "mirostat"):
        if chosen.get(name) == 0:
            del chosen[name]
    if chosen.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True} | chosen
