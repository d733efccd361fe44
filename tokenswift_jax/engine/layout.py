"""The arrays that an engine keeps: everything about the decode state that is fixed before the first row enters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tokenswift_jax.errors import UserError
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.dense import FullCache, empty_cache
from tokenswift_jax.kv.draft_cache import DraftKind
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.request import Request
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.speculate import ngram, ngram_calibration
from tokenswift_jax.step.state import DecodeState, Plan


@dataclass(frozen=True)
class Layout:
    """The static sizes and parts of a `DecodeState`.

    Attributes:
      config: the decoder's configuration.
      dtype: the model's dtype.
      capacity: slots per row of the cache, and positions per row of the token ids.
      scratch: slots that a step may write after a row's committed tokens, whether or not it commits them.
      features: the sampling features that the steps contain.
      logprobs: the log-probabilities of emitted tokens that the steps give; None: none.
      ngram_slots: continuations that the n-gram table keeps per first token; None: no table.
      calibrate: whether the state keeps the n-gram calibration record (`ngram_calibration`).
      draft: kind and sizes of the draft cache; None: no draft cache.
      cache_dtype: dtype of the full cache's K/V, as for `kv.dense.empty_cache`; None: the model's.
    """

    config: ModelConfig
    dtype: jnp.dtype
    capacity: int
    scratch: int
    features: SamplingFeatures
    logprobs: LogprobSpec | None
    ngram_slots: int | None
    calibrate: bool
    draft: DraftKind | None
    cache_dtype: str | None = None

    @staticmethod
    def of(
        config: ModelConfig,
        dtype: jnp.dtype,
        capacity: int,
        features: SamplingFeatures,
        plans: Sequence[Plan],
        ngram_slots: int,
        logprobs: LogprobSpec | None = None,
        cache_dtype: str | None = None,
    ) -> Layout:
        """The layout that serves all of `plans`.

        Raises:
          ValueError: two plans draft over caches of different kinds or sizes.
        """
        trees = [plan.tree for plan in plans if plan.tree is not None]
        kinds = {plan.draft for plan in plans if plan.draft is not None}
        if len(kinds) > 1:
            raise ValueError(f"one engine keeps one draft cache, and its plans ask for {len(kinds)} kinds")
        return Layout(
            config=config,
            dtype=dtype,
            capacity=capacity,
            scratch=scratch_of(plans),
            features=features,
            logprobs=logprobs,
            ngram_slots=ngram_slots if any(tree.ngram_k for tree in trees) else None,
            calibrate=any(tree.calibrated for tree in trees),
            draft=next(iter(kinds), None),
            cache_dtype=cache_dtype,
        )

    def check(self, request: Request) -> None:
        """Checks that a row has room for a request and that the steps can draw as it asks.

        Without the first, a step near the end of the row would overwrite committed K/V: XLA clamps its updates.

        Raises:
          UserError: the request needs more slots than a row has.
          ValueError: the request needs sampling features that the steps do not contain.
        """
        prompt, new = len(request.prompt_ids), request.max_new_tokens
        needed = prompt + new + self.scratch + 1
        if needed > self.capacity:
            raise UserError(
                f"prompt ({prompt} tokens) + max_new_tokens ({new}) needs {needed} slots, and a row of the cache has "
                f"{self.capacity}; ask for less",
                arguments=("max_new_tokens",),
            )
        if features_of(request.sampling) > self.features:
            asked, present = features_of(request.sampling).name, self.features.name
            raise ValueError(f"the request needs {asked} sampling and the engine's steps contain {present}")

    def state(self, tokens: jax.Array, lengths: jax.Array, cache: FullCache) -> DecodeState:
        """The state of token ids int32 [batch, capacity or fewer] with `lengths` int32 [batch] tokens per row.

        The last token of each row is its root, and the cache contains the positions before it. The n-gram table and the
        draft cache are empty (`loop.catch_up` fills them).
        """
        batch, config = lengths.shape[0], self.config
        return DecodeState(
            tokens=tokens,
            length=lengths - 1,
            finish=jnp.full((batch,), Finish.RUNNING, jnp.int32),
            cache=cache,
            hidden=jnp.zeros((batch, config.hidden_size), self.dtype),
            query=jnp.zeros((config.num_layers, batch, config.num_heads, config.head_dim), self.dtype),
            last_positions=penalty.last_positions(tokens, lengths, config.vocab_size),
            ngrams=None if self.ngram_slots is None else ngram.empty(batch, self.capacity, self.ngram_slots),
            ngram_trust=ngram_calibration.unobserved(batch) if self.calibrate else None,
            draft=None if self.draft is None else self.draft.empty(config, batch, self.dtype, self.cache_dtype),
        )

    def vacant(self, slots: int) -> DecodeState:
        """The state of so many vacant slots."""
        tokens = jnp.zeros((slots, self.capacity), jnp.int32)
        state = self.state(tokens, jnp.ones((slots,), jnp.int32), self.cache(slots, self.capacity))
        return replace(state, finish=jnp.full((slots,), Finish.VACANT, jnp.int32))

    def cache(self, batch: int, capacity: int) -> FullCache:
        """A full cache of zeros."""
        return empty_cache(self.config, batch, capacity, self.dtype, self.cache_dtype)


def scratch_of(plans: Sequence[Plan]) -> int:
    """Slots after a row's committed tokens that a step of any of `plans`, or of plain decoding, may write."""
    return max([max(plan.rows, plan.depth + 1) for plan in plans], default=1)
