"""How the demo model is made: configs/demo.json as dataclasses."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokenswift_jax.checkpoint.directory import read_json
from tokenswift_jax.errors import UserError
from tokenswift_jax.training.settings import TrainingSettings, read_settings

_PARTS = {"architecture", "text", "every_phase", "phases", "generation"}
_KEPT_NAMES = {"cache", "held_out", "start", "text"}  # folders beside the phases'


@dataclass(frozen=True)
class TextRecipe:
    """How books become tokens.

    Attributes:
      vocab_size: tokenizer entries, the end mark and 256 bytes included.
      wrap_column: a line of at least this many characters was broken by wrapping, not by its author.
      wrapped_every: every so many-th book keeps the file's own hard-wrapped lines.
    """

    vocab_size: int
    wrap_column: int
    wrapped_every: int


@dataclass(frozen=True)
class Phase:
    """A stretch of training: one run of the training command, from the checkpoint of the phase before it."""

    name: str
    settings: TrainingSettings


@dataclass(frozen=True)
class Recipe:
    """A whole run.

    Attributes:
      architecture: fields of LlamaConfig.
      text: of the books.
      phases: in order.
      generation: fields of generation_config.json.
    """

    architecture: dict[str, Any]
    text: TextRecipe
    phases: tuple[Phase, ...]
    generation: dict[str, Any]

    @property
    def hf_config(self) -> dict[str, Any]:
        """config.json of the model without heads."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.text.vocab_size,
            **self.architecture,
            "hidden_act": "silu",
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "initializer_range": self.architecture["hidden_size"] ** -0.5,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file; `every_phase` holds the settings that all phases share.

    Raises:
      UserError: a part or field is missing or unknown, or a value out of range.
    """
    parts = read_json(path)
    if set(parts) != _PARTS:
        raise UserError(f"{path} must hold {', '.join(sorted(_PARTS))}; it holds {', '.join(sorted(parts))}")
    asked = {field.name for field in fields(TextRecipe)}
    text = parts["text"]
    if set(text) != asked or not all(type(value) is int and value > 0 for value in text.values()):
        raise UserError(f"{path}: text must hold {', '.join(sorted(asked))}, whole numbers above 0, not {text}")
    if "hidden_size" not in parts["architecture"]:
        raise UserError(f"{path}: the architecture lacks hidden_size")
    phases = tuple(_phase(path, parts["every_phase"] | phase) for phase in parts["phases"])
    names = [phase.name for phase in phases]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: phases need names of their own, not {names}")
    return Recipe(parts["architecture"], TextRecipe(**text), phases, parts["generation"])


def _phase(path: Path, given: dict[str, Any]) -> Phase:
    settings = dict(given)
    name = settings.pop("name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name) or name in _KEPT_NAMES:
        kept = ", ".join(sorted(_KEPT_NAMES))
        raise UserError(f"{path}: a phase's name is {name!r}; it must be small letters and digits, none of {kept}")
    unknown = sorted(set(settings) - {field.name for field in fields(TrainingSettings)})
    if unknown:
        raise UserError(f"{path}: phase {name} has unknown settings {', '.join(unknown)}")
    try:
        return Phase(name, read_settings(None, settings))
    except UserError as error:
        raise UserError(f"{path}: phase {name}: {error}") from None
