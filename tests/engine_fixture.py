"""Settings, layouts and states for tests of single steps, made as the engine makes them."""

from typing import TypeVar

import jax
import jax.numpy as jnp

from tokenswift_jax.engine.compile_cache import CompileCache
from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.engine.prefill import Prefill
from tokenswift_jax.model import Model
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.params import SequenceParams, sequence_params
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.step.state import DecodeState

Part = TypeVar("Part")


def settings_of(
    config: SamplingConfig,
    *,
    vocab: int,
    batch: int = 1,
    eos_ids: tuple[int, ...] = (),
    min_new_tokens: int = 0,
    prompt_length: int = 1,
    max_new_tokens: int = 0,
) -> SequenceParams:
    """Row i draws with `config.sequence` + i; prompts are of one length."""
    return sequence_params(
        batch_of(
            [range(prompt_length)] * batch,
            config,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            eos_token_ids=eos_ids,
        ),
        vocab,
    )


def layout_of(plan: Plan, dtype: jnp.dtype, capacity: int) -> Layout:
    """The layout that serves one plan."""
    return Layout.of(plan.config, jnp.dtype(dtype), capacity, plan.features, [plan])


def blank_state(layout: Layout, batch: int) -> DecodeState:
    """The state of texts of one token, 0."""
    tokens = jnp.zeros((batch, layout.capacity), jnp.int32)
    return layout.state(tokens, jnp.ones((batch,), jnp.int32), layout.cache(batch, layout.capacity))


def prefilled_state(model: Model, texts: list[list[int]], layout: Layout) -> DecodeState:
    """The state of texts whose last tokens are roots."""
    requests = batch_of(texts, SamplingConfig(), max_new_tokens=1)
    prefill = Prefill(model, CompileCache(), layout, requests, [()] * len(texts), layout.capacity, None)
    while not prefill.finished:
        prefill.advance()
    return jax.block_until_ready(prefill.state())


def part_of(state: DecodeState, kind: type[Part]) -> Part:
    """The one part of the drafters' state that is of this class."""
    (part,) = (part for part in state.drafter if isinstance(part, kind))
    return part
