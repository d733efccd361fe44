"""The programs that decoding runs, with their arguments as shapes: to be compiled anywhere, or filled and run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tokenswift_jax.engine.layout import Layout
from tokenswift_jax.engine.plan_programs import CHUNK_TOKENS
from tokenswift_jax.engine.prefill import ACCELERATOR_ROWS
from tokenswift_jax.kv.context_cache import full_cache
from tokenswift_jax.kv.cyclic import Cyclic
from tokenswift_jax.kv.dense import FullCache
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.models.joined import joined
from tokenswift_jax.models.stacked import groups_for, stacked
from tokenswift_jax.request import batch_of
from tokenswift_jax.sample.features import SamplingFeatures, features_of
from tokenswift_jax.sample.gumbel import gumbel_noise
from tokenswift_jax.sample.params import sequence_params
from tokenswift_jax.sampling import SamplingConfig
from tokenswift_jax.speculate import plans
from tokenswift_jax.speculate.plan import Plan
from tokenswift_jax.speculation import SpeculationConfig
from tokenswift_jax.step import loop
from tokenswift_jax.step.draft import draft_tree
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.step.state import DecodeState, StepInputs

STEPS = ("plain", "verify-16", "verify-16-topkp", "verify-64", "draft", "partial-16", "prefill")
# The paper's values, so that every part of sampling is in the steps.
SAMPLING = SamplingConfig(temperature=1.0, min_p=0.1, repetition_penalty=1.1, penalty_window=1024)
# The values of most published checkpoints: Qwen2.5's generation_config.json.
TOP_SAMPLING = SamplingConfig(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05, penalty_window=1024)
DRAFT_CACHE = 4096


@dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
      name: of STEPS.
      function: jitted; its cache is donated.
      arguments: pytree of shapes.
      rows: that the target's forward takes at once.
      plan: the plan of an iteration; None for prefill.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    rows: int
    plan: Plan | None


def decoder_shapes(config: ModelConfig, dtype: Any, join: bool, stack: bool = True) -> tuple[Any, Any]:
    """Graph and shapes of the parameters; `join` as decoding on one GPU has them; with `stack`, a deep decoder has its
    stack, as on one device."""
    groups = groups_for(config) if stack else None

    def make() -> Decoder:
        decoder = Decoder(config, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
        decoder = joined(decoder) if join else decoder
        return stacked(decoder, groups) if groups else decoder

    return nnx.split(nnx.eval_shape(make))


def step_named(
    name: str,
    config: ModelConfig,
    capacity: int,
    dtype: Any,
    batch: int = 1,
    *,
    join: bool = False,
    one_pass: bool = True,
    stack: bool = True,
    cyclic: Cyclic | None = None,
) -> Step:
    """A step of a model with a cache of `capacity` slots; `join` and `stack` as in `decoder_shapes`, `one_pass` as in
    `Plan` where the plan allows it, `cyclic` as in `Layout`.

    `plain` is a token of `autoregressive`; `verify-N` an iteration of `fused` with N rows, drafting by heads and commit
    included, `verify-N-topkp` one whose draws have top-k and top-p; `partial-16` an iteration of `partial`; `draft` its
    drafting alone; `prefill` a chunk of a prompt, `prefill-N` one of N positions.
    """
    graph, params = decoder_shapes(config, dtype, join, stack)
    if is_prefill(name):
        shape, rows = jax.ShapeDtypeStruct, rows_of(name)
        cache = jax.eval_shape(lambda: full_cache(config, batch, capacity, jnp.dtype(dtype), None, cyclic))
        arguments = (params, shape((batch, rows), jnp.int32), shape((), jnp.int32), cache)
        function = jax.jit(functools.partial(loop.prefill_chunk, graph), donate_argnums=3)
        return Step(name, function, arguments, rows, None)
    plan = plan_named(name, config)
    plan = replace(plan, one_pass=plan.one_pass and one_pass)
    inputs, state = jax.eval_shape(lambda p: first_call(plan, p, jnp.dtype(dtype), batch, capacity, cyclic), params)
    if name == "draft":
        function = jax.jit(functools.partial(draft_alone, graph, plan), donate_argnums=1)
        return Step(name, function, (inputs, state), 1, plan)
    function = jax.jit(functools.partial(loop.run_chunk, graph, plan, CHUNK_TOKENS + plan.depth), donate_argnums=1)
    return Step(name, function, (inputs, state, jax.ShapeDtypeStruct((), jnp.int32)), plan.rows, plan)


def plan_named(name: str, config: ModelConfig) -> Plan:
    """The plan of a step of STEPS, prefill excepted."""
    features = features_of(_sampling(name))
    if name == "plain":
        return plans.autoregressive_plan(config, features).plan
    schedule = "fused" if name.startswith("verify") else "partial"
    rows = 16 if name == "draft" else rows_of(name)
    drafting = SpeculationConfig(tree=(1, 3, 3, 3), node_budget=rows - 1, draft_cache=DRAFT_CACHE)
    speculation = drafting.with_mode("tokenswift", schedule)
    return plans.speculative_plans(config, speculation, features, "accelerator")[0].plan


def rows_of(name: str) -> int:
    """Rows that the target verifies in a step, or a prompt's positions that a chunk takes in, from its name."""
    return ACCELERATOR_ROWS if name == "prefill" else int(name.split("-")[1])


def is_prefill(name: str) -> bool:
    """Whether a step is a chunk of a prompt."""
    return name.startswith("prefill")


def _sampling(name: str) -> SamplingConfig:
    return TOP_SAMPLING if name.endswith("-topkp") else SAMPLING


def first_call(
    plan: Plan, params: Any, dtype: Any, batch: int, capacity: int, cyclic: Cyclic | None = None
) -> tuple[StepInputs, DecodeState]:
    """The arguments of the first iteration after an empty prompt."""
    config, layout = plan.config, Layout.of(plan.config, dtype, capacity, plan.features, [plan], cyclic=cyclic)
    tokens = jnp.zeros((batch, capacity), jnp.int32)
    state = layout.state(tokens, jnp.ones((batch,), jnp.int32), layout.cache(batch, capacity))
    chosen = TOP_SAMPLING if plan.features == SamplingFeatures.FILTERED else SAMPLING
    requests = batch_of([[0]] * batch, chosen, max_new_tokens=capacity - 1)
    return StepInputs(params, sequence_params(requests, config.padded_vocab)), state


def draft_alone(graph: Any, plan: Plan, inputs: StepInputs, state: DecodeState) -> tuple[Any, DecodeState]:
    """The drafting half of an iteration: its tree, and the state with the draft cache's scratch rows written."""
    model = nnx.merge(graph, inputs.params)
    ahead = jnp.arange(1, plan.depth + 2, dtype=jnp.int32)
    with exact_products(state.cache.dtype):
        noise = gumbel_noise(inputs.sequence.keys, state.length[:, None] + ahead[None], plan.config.padded_vocab)
        return draft_tree(model, state, (), inputs, plan, noise)


def cache_of(step: Step) -> FullCache:
    """The full cache among a step's arguments."""
    return step.arguments[3] if step.plan is None else step.arguments[1].cache
