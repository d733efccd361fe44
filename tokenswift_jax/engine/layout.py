"""The arrays that an engine keeps: everything about the decode state that is fixed before the first row enters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp

from tokenswift_jax.errors import UserError
from tokenswift_jax.finish import Finish
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.parallel.rules import bytes_on_each
from tokenswift_jax.request import Request
from tokenswift_jax.sample import penalty
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.logprobs import LogprobSpec
from tokenswift_jax.speculate.drafter import Drafter, DrafterState, StatePart, StateSizes
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.step.state import DecodeState


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
      parts: the parts of the drafters' state, each once, whether one plan uses it or several.
      cache_dtype: dtype of the full cache's K/V, as for `kv.dense.empty_cache`; None: the model's.
      cyclic: the turns of the devices that share the cache's length; None: its length is not split.
    """

    config: ModelConfig
    dtype: jnp.dtype
    capacity: int
    scratch: int
    features: SamplingFeatures
    logprobs: LogprobSpec | None
    parts: tuple[StatePart, ...]
    cache_dtype: str | None = None
    cyclic: Cyclic | None = None

    @staticmethod
    def of(
        config: ModelConfig,
        dtype: jnp.dtype,
        capacity: int,
        features: SamplingFeatures,
        plans: Sequence[Plan],
        logprobs: LogprobSpec | None = None,
        cache_dtype: str | None = None,
        cyclic: Cyclic | None = None,
    ) -> Layout:
        """The layout that serves all of `plans`."""
        parts = [part for plan in plans for part in plan.drafter.parts]
        return Layout(
            config=config,
            dtype=dtype,
            capacity=capacity,
            scratch=scratch_of(plans),
            features=features,
            logprobs=logprobs,
            parts=tuple(dict.fromkeys(parts)),
            cache_dtype=cache_dtype,
            cyclic=cyclic,
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

    def check_parts(self) -> None:
        """Checks that positions of a text can be read from a cache and put into one.

        Raises:
          UserError: devices share the positions of the cache.
        """
        if self.cyclic is not None:
            raise UserError(
                f"mesh context={self.cyclic.devices} splits the positions of a cache, and a prefix is of whole ones; "
                "a mesh of other axes reuses prefixes",
                arguments=("mesh",),
            )

    def state(self, tokens: jax.Array, lengths: jax.Array, cache: FullCache | None) -> DecodeState:
        """The state of token ids int32 [batch, capacity or fewer] with `lengths` int32 [batch] tokens per row.

        The last token of each row is its root, and the cache contains the positions before it; a caller that gives None
        puts it in later. The parts of the drafters' state are empty (`loop.catch_up` fills them).
        """
        batch, config = lengths.shape[0], self.config
        return DecodeState(
            tokens=tokens,
            length=lengths - 1,
            finish=jnp.full((batch,), int(Finish.RUNNING), jnp.int32),
            cache=cache,  # pyright: ignore[reportArgumentType]
            hidden=jnp.zeros((batch, config.hidden_size), self.dtype),
            query=jnp.zeros((config.num_layers, batch, config.num_heads, config.head_dim), self.dtype),
            last_positions=penalty.last_positions(tokens, lengths, config.padded_vocab),
            drafter=self.empty_parts(batch),
        )

    def places(self, drafter: Drafter) -> tuple[int, ...]:
        """The places of a drafter's parts among `parts`."""
        return tuple(map(self.parts.index, drafter.parts))

    def drafter_bytes(self, slots: int, mesh: Mapping[str, int] | None = None) -> int:
        """Bytes of the parts of the drafters' state for so many slots, on each device of a mesh of such sizes; None is
        one device."""
        return _drafter_bytes(self, slots, tuple((mesh or {}).items()))

    def empty_parts(self, batch: int) -> DrafterState:
        """The parts of the drafters' state for rows without text."""
        sizes = StateSizes(self.config, self.capacity, self.dtype, self.cache_dtype)
        return tuple(part.empty(sizes, batch) for part in self.parts)

    def vacant(self, slots: int) -> DecodeState:
        """The state of so many vacant slots."""
        tokens = jnp.zeros((slots, self.capacity), jnp.int32)
        state = self.state(tokens, jnp.ones((slots,), jnp.int32), self.cache(slots, self.capacity))
        return replace(state, finish=jnp.full((slots,), Finish.VACANT, jnp.int32))

    def cache(self, batch: int, capacity: int) -> FullCache:
        """A full cache of zeros."""
        return full_cache(self.config, batch, capacity, self.dtype, self.cache_dtype, self.cyclic)


def scratch_of(plans: Sequence[Plan]) -> int:
    """Slots after a row's committed tokens that a step of any of `plans`, or of plain decoding, may write."""
    return max([max(plan.rows, plan.depth + 1) for plan in plans], default=1)


def with_parts_at(state: DecodeState, places: Sequence[int]) -> DecodeState:
    """The state that a step takes: it contains no part of other drafters, so that each plan has the same executable in
    every engine."""
    return replace(state, drafter=tuple(state.drafter[place] for place in places))


def with_all_parts(after: DecodeState, places: Sequence[int], before: DecodeState) -> DecodeState:
    """The state after a step that took the parts at `places`, with the other parts as they were in `before`."""
    own = list(before.drafter)
    for place, part in zip(places, after.drafter, strict=True):
        own[place] = part
    return replace(after, drafter=tuple(own))


@lru_cache(maxsize=64)
def _drafter_bytes(layout: Layout, slots: int, sizes: tuple[tuple[str, int], ...]) -> int:
    """`Layout.drafter_bytes`, once: tracing takes 3 ms, as long as ten tokens of the demo."""
    return bytes_on_each(dict(sizes), jax.eval_shape(lambda: layout.empty_parts(slots)))
