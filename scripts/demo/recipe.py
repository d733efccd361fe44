"""What one training run is: the architecture and phases of configs/demo.json as dataclasses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenswift_jax.models.config import ModelConfig, RopeConfig


@dataclass(frozen=True)
class TextRecipe:
    """How books become tokens.

    Attributes:
      vocab_size: tokenizer entries, the end mark and 256 bytes included.
      wrap_column: a line of at least this many characters was broken by wrapping, not by its author.
      wrapped_share: part of the windows read from the files' own hard-wrapped lines.
    """

    vocab_size: int
    wrap_column: int
    wrapped_share: float


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW for the backbone and, apart from it, for the heads; warmup_share is a part of the whole run.

    The heads want a far higher rate: their maps start at zero and must outweigh a residual stream of large norm.
    """

    learning_rate: float
    head_learning_rate: float
    warmup_share: float
    betas: tuple[float, float]
    weight_decay: float
    head_weight_decay: float
    clip_norm: float


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one batch shape.

    Attributes:
      share: its part of the run's time (or steps).
      batch, length: windows a step and tokens a window.
      gap_share: part of the windows whose middle is left out, so that far positions occur.
      head_stride: the heads learn from every head_stride-th position.
      head_weight: what the heads' losses count in the backbone's gradient; 0 keeps them apart.
      freeze_backbone: whether only the heads learn.
    """

    name: str
    share: float
    batch: int
    length: int
    gap_share: float
    head_stride: int
    head_weight: float
    freeze_backbone: bool


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    model: ModelConfig
    text: TextRecipe
    optimizer: OptimizerRecipe
    phases: tuple[Phase, ...]
    generation: dict[str, Any]

    def phase_at(self, progress: float) -> Phase:
        """The phase at `progress` in [0, 1)."""
        end = 0.0
        for phase in self.phases:
            end += phase.share
            if progress < end:
                return phase
        return self.phases[-1]

    @property
    def backbone_share(self) -> float:
        """Part of the run in which the backbone learns."""
        return sum(phase.share for phase in self.phases if not phase.freeze_backbone)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file; a missing or unknown field is an error."""
    fields = json.loads(path.read_text())
    optimizer = dict(fields["optimizer"], betas=tuple(fields["optimizer"]["betas"]))
    text = TextRecipe(**fields["text"])
    phases = tuple(Phase(**phase) for phase in fields["phases"])
    if abs(sum(phase.share for phase in phases) - 1.0) > 1e-6:
        raise SystemExit(f"train_demo: the phases' shares in {path} do not sum to 1")
    model = llama_config(fields["architecture"] | {"vocab_size": text.vocab_size})
    return Recipe(model, text, OptimizerRecipe(**optimizer), phases, fields["generation"])


def llama_config(fields: dict[str, Any]) -> ModelConfig:
    """The decoder of LlamaConfig's fields and num_draft_heads."""
    rope = RopeConfig(
        type="default",
        theta=fields["rope_theta"],
        factor=None,
        original_max_position=None,
        low_freq_factor=None,
        high_freq_factor=None,
        beta_fast=None,
        beta_slow=None,
        attention_factor=None,
        truncate=None,
    )
    return ModelConfig(
        model_type="llama",
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        num_kv_heads=fields["num_key_value_heads"],
        head_dim=fields["head_dim"],
        rms_norm_eps=fields["rms_norm_eps"],
        rope=rope,
        max_position_embeddings=fields["max_position_embeddings"],
        tie_word_embeddings=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=(None,) * fields["num_hidden_layers"],
        num_draft_heads=fields["num_draft_heads"],
        draft_head_type="chained",
    )
