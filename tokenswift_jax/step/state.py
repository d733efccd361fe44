"""The state of a decode: one frozen pytree that every jitted step takes (donated) and returns."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import nnx

from tokenswift_jax.arrays import axes, pytree
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.kv.draft_blocks import BlockTable
from tokenswift_jax.kv.draft_cache import DraftKind
from tokenswift_jax.kv.draft_positions import DraftCache
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.sample.params import SequenceParams
from tokenswift_jax.speculate.ngram import NgramTable
from tokenswift_jax.speculate.tree_spec import TreeSpec


@pytree
class DecodeState:
    """The state of a batch of texts between two iterations.

    Attributes:
      tokens: int32 [batch, text_capacity], the text by position: prompt, then emitted tokens; entries past the root are
        meaningless.
      length: int32 [batch], committed positions n; tokens[n] is the root.
      finish: int32 [batch], `Finish`.
      cache: the full cache, K/V of positions 0 .. n-1.
      hidden: [batch, hidden_size], the last layer's output (before the final norm) whose logits drew the root.
      query: [layers, batch, query_heads, head_dim], the root's rotated queries in the latest pass.
      last_positions: int32 [batch, vocab], newest position of each token in the text (`penalty.last_positions`).
      ngrams: the n-gram table, of 4-grams; None in modes without it.
      ngram_trust: float32 [batch, 2], the record of how often n-grams were right (`ngram_calibration.factor`); None
        where no plan is `TreeSpec.calibrated`.
      draft: the draft cache; None in modes without it.
    """

    tokens: jax.Array = axes("batch", "slots")
    length: jax.Array = axes("batch")
    finish: jax.Array = axes("batch")
    cache: FullCache
    hidden: jax.Array = axes("batch", "embed")
    query: jax.Array = axes("layers", "batch", "heads", "head_dim")
    last_positions: jax.Array = axes("batch", "vocab")
    ngrams: NgramTable | None
    ngram_trust: jax.Array | None = axes("batch", "sums")
    draft: DraftCache | BlockTable | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepInputs:
    """The inputs that a step reads and never changes.

    Attributes:
      params: the decoder's parameters (`nnx.split`).
      draft_params: the parameters of `Plan.drafter`; None where no plan has one.
      sequence: the settings of every row: how tokens are drawn, where texts end.
    """

    params: object
    sequence: SequenceParams
    draft_params: object | None = None


@dataclass(frozen=True)
class Plan:
    """The plan of one compiled step; static, so each plan has its own executable.

    Attributes:
      config: the decoder's configuration.
      features: the sampling features of a step.
      kind: `autoregressive`, `partial`, `fused` (medusa too), `ngram` or `selfspec`.
      tree: the tree's shape; None for autoregressive.
      draft: kind and sizes of the draft cache; None for kinds that do not draft over it.
      shared_noise: whether candidates are ranked with the noise of the draw that they guess.
      logprobs: the log-probabilities of emitted tokens that a step returns; None: none.
      drafter: structure of the quantised decoder that drafts (`StepInputs.draft_params`); None: the target itself.
    """

    config: ModelConfig
    features: SamplingFeatures
    kind: str
    tree: TreeSpec | None
    draft: DraftKind | None
    shared_noise: bool = True
    drafter: nnx.GraphDef | None = None
    logprobs: LogprobSpec | None = None

    @property
    def depth(self) -> int:
        """The most drafted tokens that one iteration can accept."""
        return 0 if self.tree is None else self.tree.depth

    @property
    def rows(self) -> int:
        """Tree rows of the verify forward."""
        return 1 if self.tree is None else self.tree.rows
