"""The plan of one compiled step."""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.speculate.drafter import Drafter
from tokenswift_jax.speculate.tree_spec import TreeSpec


@dataclass(frozen=True)
class Plan:
    """The plan of one compiled step; static, so each plan has its own executable.

    Attributes:
      config: the decoder's configuration.
      features: the sampling features of a step.
      drafter: the source of the drafts.
      tree: the sizes of the tree that the drafter proposes.
      shared_noise: whether candidates are ranked with the noise of the draw that they guess.
      draft_graph: structure of the draft model, whose parameters are `StepInputs.draft_params`; None: the target itself
        drafts.
      logprobs: the log-probabilities of emitted tokens that a step returns; None: none.
    """

    config: ModelConfig
    features: SamplingFeatures
    drafter: Drafter
    tree: TreeSpec
    shared_noise: bool = True
    draft_graph: nnx.GraphDef | None = None
    logprobs: LogprobSpec | None = None

    @property
    def depth(self) -> int:
        """The most drafted tokens that one iteration can accept."""
        return self.tree.depth

    @property
    def rows(self) -> int:
        """Tree rows of the verify forward."""
        return self.tree.rows
