"""Static description of a decoder: everything that its computation needs, without defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenswift_jax.models.draft_vocab import DraftVocab
from tokenswift_jax.models.expected_tokens import ExpectedTokens
from tokenswift_jax.models.node_sets import NO_NODE_SETS, NodeSets

RopeType = Literal["default", "linear", "llama3", "yarn"]
DraftHeadType = Literal["chained", "sequential", "medusa"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding; fields that a type does not use are None.

    Attributes:
      type: selects the formula of the inverse frequencies.
      theta: base of the geometric progression of frequencies.
      factor: ratio of the stretched length to the trained length (linear, llama3, yarn).
      original_max_position: trained length in positions before stretching (llama3, yarn).
      low_freq_factor, high_freq_factor: band limits in rotations over the trained length (llama3).
      beta_fast, beta_slow: band limits in rotations over the trained length (yarn).
      attention_factor: multiplies cos and sin (yarn); already resolved from mscale fields.
      truncate: whether yarn's band limits are rounded outwards to whole dimensions.
    """

    type: RopeType
    theta: float
    factor: float | None
    original_max_position: int | None
    low_freq_factor: float | None
    high_freq_factor: float | None
    beta_fast: float | None
    beta_slow: float | None
    attention_factor: float | None
    truncate: bool | None


@dataclass(frozen=True)
class AttentionSpec:
    """Attention settings of a layer; static.

    Attributes:
      scale: factor of the products of queries and keys.
      window: number of newest positions that a row sees, its own included; None: all.
    """

    scale: float
    window: int | None


@dataclass(frozen=True)
class ModelConfig:
    """One Llama-like decoder with its optional draft heads.

    Attributes:
      model_type: the family's name in config.json (llama, mistral, qwen2, qwen3).
      max_position_embeddings: the longest text in positions: the number of config.json, or factor times the trained
        length where RoPE stretches further (`hf_rope.longest_text`).
      sliding_windows: one entry per layer, the number of newest positions (its own included) that a row
        sees, or None for all of them.
      qkv_bias, output_bias, mlp_bias: whether those projections have a bias.
      qk_norm: whether an RMSNorm per head normalises queries and keys (Qwen3).
      num_draft_heads: draft heads, which guess tokens t+2, t+3, ... from one hidden state.
      draft_head_type: `chained` heads read that state alone, `sequential` heads also the token above their guess;
        `medusa` heads read that state after the final norm, and do not build on each other.
      node_sets: the most profitable nodes of the draft heads' tree, found when the heads were trained.
      expected_tokens: the tokens of an iteration with the draft heads on held-out text; None: nobody measured them.
      draft_vocab: the tokens that draft heads score; None for all.
      vocab_padding: zeros that a mesh adds after the vocabulary, in the embeddings and the LM head, so that its devices
        share them evenly (`parallel.fit`); no program draws them.
      limited_by: the field of config.json that this package does not support and that would change longer texts than
        `max_position_embeddings` allows; None: no such field.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    num_draft_heads: int
    draft_head_type: DraftHeadType
    node_sets: NodeSets = NO_NODE_SETS
    expected_tokens: ExpectedTokens | None = None
    draft_vocab: DraftVocab | None = None
    limited_by: str | None = None
    vocab_padding: int = 0

    def attention(self, layer: int) -> AttentionSpec:
        """Returns the attention settings of a layer."""
        return AttentionSpec(self.head_dim**-0.5, self.sliding_windows[layer])

    @property
    def padded_vocab(self) -> int:
        """Ids that the embeddings and the LM head have: the size of logits, noise and penalties in programs."""
        return self.vocab_size + self.vocab_padding

    @property
    def head_candidates(self) -> int:
        """Tokens that draft heads score: the most candidates of a depth that a head guesses."""
        return self.vocab_size if self.draft_vocab is None else len(self.draft_vocab)

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads
