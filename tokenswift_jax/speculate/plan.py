"""The plan of one compiled step."""

from __future__ import annotations

from dataclasses import dataclass

from flax import nnx

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.speculate.drafter import Drafter
from tokenswift_jax.speculate.tree_spec import TreeSpec

# Rows of a product with the LM head that take no longer than one: by its data sheet every device of
# `parallel.device_rates` multiplies at least 153 rows of bfloat16 in the time in which it reads the weights.
MOST_LINES = 128


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
      one_pass: whether the draft heads read the verified rows' hidden states, so that the verification can compute
        their logits for the next tree in its own pass over the LM head.
    """

    config: ModelConfig
    features: SamplingFeatures
    drafter: Drafter
    tree: TreeSpec
    shared_noise: bool = True
    draft_graph: nnx.GraphDef | None = None
    logprobs: LogprobSpec | None = None
    one_pass: bool = False

    @property
    def depth(self) -> int:
        """The most drafted tokens that one iteration can accept."""
        return self.tree.depth

    @property
    def rows(self) -> int:
        """Tree rows of the verify forward."""
        return self.tree.rows

    def heads_verified(self, batch: int) -> int:
        """Draft heads whose logits the verification of so many texts computes for all its tree rows, in one pass over
        the LM head; 0: drafting computes those of the row that drew the root, in a pass of its own.

        The next tree needs the logits of one row, and only the draws tell which one; up to `MOST_LINES`, those of all
        rows take no more time.
        """
        heads = len(self.tree.widths) if self.one_pass and self.draft_graph is None else 0
        return heads if batch * self.rows * (1 + heads) <= MOST_LINES else 0
