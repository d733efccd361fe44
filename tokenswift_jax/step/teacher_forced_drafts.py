"""The drafts that the heads would have made below tokens of a known text, against the tokens that follow there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.parallel.rules import split_as
from tokenswift_jax.sample.features import SamplingFeatures
from tokenswift_jax.sample.params import SequenceParams
from tokenswift_jax.speculate.candidates import DraftSampler, head_levels
from tokenswift_jax.speculate.tree import build
from tokenswift_jax.speculate.tree_spec import TreeSpec
from tokenswift_jax.step.accept import accept

NOT_ACCEPTED = 2**31 - 1  # above every node budget, which may exceed the rows of the heads' own tree


def accepted_rows(
    graph: nnx.GraphDef,
    spec: TreeSpec,
    params: Any,
    settings: SequenceParams,
    hidden: jax.Array,
    root: jax.Array,
    following: jax.Array,
) -> jax.Array:
    """The tree row of each accepted draft, int32 [roots, depth]; past the accepted ones NOT_ACCEPTED.

    Tree rows rank by draft probability, so a smaller node budget accepts the leading drafts in rows up to that budget.

    Args:
      graph: structure of a decoder with draft heads.
      spec: the tree's sizes, static; its n-gram chains are left out.
      params: the decoder's parameters.
      settings: settings of greedy rows without other wishes, one per root.
      hidden: [roots, hidden_size], the last layer's output at the position before each root.
      root: int32 [roots].
      following: int32 [roots, depth + 1], the tokens after each root.
    """
    model, spec = nnx.merge(graph, params), replace(spec, ngram_k=0)
    absent = split_as(jnp.full((root.shape[0], model.config.padded_vocab), -1, jnp.int32), "rows", "vocab")
    ranking = DraftSampler(jnp.zeros_like(root), absent, None, settings, SamplingFeatures.GREEDY)
    levels = head_levels(model, spec, hidden, root, ranking, backbone=False)
    tree = build(spec, root, levels)
    draws = jnp.take_along_axis(following, tree.depths, axis=1)
    acceptance = accept(tree, draws, spec.depth)
    depths = jnp.arange(1, spec.depth + 1, dtype=jnp.int32)[None]
    return jnp.where(depths <= acceptance.accepted[:, None], acceptance.path[:, 1:], jnp.int32(NOT_ACCEPTED))
