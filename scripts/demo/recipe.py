"""The recipe of the demo model: configs/demo.json as a dataclass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.settings import TrainingSettings, read_settings

_PARTS = {"architecture", "text", "every_phase", "phases", "generation"}
_TEXT = {"vocab_size", "wrap_column", "wrapped_every"}
_KEPT_NAMES = {"cache", "held_out", "start", "text"}  # folders beside the phases'


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
      architecture: fields of LlamaConfig.
      text: `vocab_size` (tokenizer entries, the end mark and 256 bytes included), `wrap_column` (a line of at least so
        many characters was broken by wrapping, not by its author), `wrapped_every` (every so many-th book keeps the
        hard-wrapped lines of its file).
      phases: settings by name, in order; a phase is one run of the training command, from the checkpoint before it.
      generation: fields of generation_config.json.
    """

    architecture: dict[str, Any]
    text: dict[str, int]
    phases: dict[str, TrainingSettings]
    generation: dict[str, Any]

    @property
    def hf_config(self) -> dict[str, Any]:
        """config.json of the model without heads."""
        fixed = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
        fixed |= {"rope_scaling": None, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        deviation = {"initializer_range": self.architecture["hidden_size"] ** -0.5}
        return fixed | ends | deviation | {"vocab_size": self.text["vocab_size"]} | self.architecture


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file; `every_phase` has the settings that all phases share.

    Raises:
      UserError: a part or field is missing or unknown, or a value out of range.
    """
    parts = read_json(path)
    if set(parts) != _PARTS:
        raise UserError(f"{path} must hold {', '.join(sorted(_PARTS))}; it holds {', '.join(sorted(parts))}")
    text = parts["text"]
    if set(text) != _TEXT or not all(type(value) is int and value > 0 for value in text.values()):
        raise UserError(f"{path}: text must hold {', '.join(sorted(_TEXT))}, whole numbers above 0, not {text}")
    if "hidden_size" not in parts["architecture"]:
        raise UserError(f"{path}: the architecture lacks hidden_size")
    phases: dict[str, TrainingSettings] = {}
    for given in parts["phases"]:
        settings = parts["every_phase"] | given
        name = settings.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name) or name in {*_KEPT_NAMES, *phases}:
            kept = ", ".join(sorted(_KEPT_NAMES))
            raise UserError(f"{path}: a phase's name is {name!r}; it must be new, of small letters, none of {kept}")
        try:
            phases[name] = read_settings(None, settings)
        except UserError as error:
            raise UserError(f"{path}: phase {name}: {error}") from None
    if not phases:
        raise UserError(f"{path}: there is no phase")
    return Recipe(parts["architecture"], text, phases, parts["generation"])
