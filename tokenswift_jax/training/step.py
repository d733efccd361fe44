"""One optimizer step: the gradients of all micro-batches, then one update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tokenswift_jax.models.decoder import Decoder
from tokenswift_jax.step.exact_products import exact_products
from tokenswift_jax.training.draft_view import draft_view_states, prompt_rows
from tokenswift_jax.training.forward import hidden_states
from tokenswift_jax.training.losses import Counts, Sums, count, loss_sums
from tokenswift_jax.training.settings import TrainingSettings
from tokenswift_jax.training.shares import ONE_DEVICE, Shares
from tokenswift_jax.training.windows import Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that a step changes.

    Attributes:
      step: int32 [], optimizer steps taken.
      params: float32 masters, {"heads": ..., "backbone": ...}; no backbone when it is frozen.
      optimizer: the state of optax.
    """

    step: jax.Array
    params: dict[str, Any]
    optimizer: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepReport:
    """The measurements of one step.

    Attributes:
      base: float32 [], mean loss of the next token in nats; 0 where the backbone is frozen.
      heads: float32 [heads], mean loss of each head in nats.
      gradient_norm: float32 [], norm of the gradient of all trained parameters, before clipping.
    """

    base: jax.Array
    heads: jax.Array
    gradient_norm: jax.Array


TrainStep = Callable[..., tuple[TrainState, StepReport]]


def make_step(
    graph: nnx.GraphDef,
    settings: TrainingSettings,
    optimizer: optax.GradientTransformation,
    dtype: Any,
    shares: Shares = ONE_DEVICE,
    like: TrainState | None = None,
) -> TrainStep:
    """The jitted step (state, frozen backbone or None, batch [accumulation, batch, length], states) -> (state, report).

    `states` [accumulation, batch, length, hidden_size] are the backbone's hidden states where a file keeps them
    (`kept_states`); without them, the step runs the backbone. The step donates the state. The forward and backward
    passes run in `dtype`; the step sums gradients in float32, and devices of a mesh sum theirs in `dtype`.

    Args:
      graph: the decoder's structure, to merge with (heads, backbone).
      settings, optimizer, dtype: those of the run.
      shares: the devices of the run.
      like: a state of the run's shapes, by which a step on a mesh places the state that it returns.
    """
    placed: dict[str, Any] = {}
    if shares.mesh is not None and like is not None:
        placed["out_shardings"] = shares.shardings(like), NamedSharding(shares.mesh, P())

    def sums(
        params: dict[str, Any], frozen: Any, batch: Batch, kept: jax.Array | None, step: jax.Array, counts: Counts
    ) -> tuple[Any, Sums]:
        heads = jax.tree.map(partial(_as, dtype), params["heads"])
        backbone = jax.tree.map(partial(_as, dtype), params["backbone"] if frozen is None else frozen)
        offset = step % settings.head_stride
        heads, backbone = shares.gathered(heads), shares.gathered(backbone, layers=False)
        with exact_products(dtype), shares.kernels():
            model = nnx.merge(graph, heads, backbone)
            hidden, read = _hidden(model, batch, step, settings, shares) if kept is None else (kept, kept)
            if frozen is not None:
                hidden, read = jax.lax.stop_gradient((hidden, read))
            if not settings.head_loss_weight:
                read = jax.lax.stop_gradient(read)
            losses = loss_sums(model, hidden, read, batch, offset, settings)
        base = losses.base / jnp.maximum(counts.base, 1).astype(jnp.float32)
        guesses = losses.heads / jnp.maximum(counts.heads, 1).astype(jnp.float32)
        # Adam is independent of the scale of the gradients of the heads, so one weight serves heads and backbone.
        return base + jnp.float32(settings.head_loss_weight or 1.0) * jnp.sum(guesses), Sums(base, guesses)

    @partial(jax.jit, donate_argnums=0, **placed)
    def step(
        state: TrainState, frozen: Any, batches: Batch, states: jax.Array | None = None
    ) -> tuple[TrainState, StepReport]:
        offset = state.step % settings.head_stride
        each = jax.vmap(lambda batch: count(batch, settings.heads, offset, settings.head_stride))(batches)
        counts = jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=jnp.int32), each)
        gradient = jax.grad(sums, has_aux=True)

        def added(carry: Any, more: Any) -> Any:
            gradients, losses = jax.tree.map(jnp.add, carry, more)
            return shares.split(gradients), losses

        def add(carry: Any, one: tuple[Batch, jax.Array | None]) -> tuple[Any, None]:
            return added(carry, gradient(state.params, frozen, *one, state.step, counts)), None

        if settings.gradient_accumulation_steps == 1:
            one = jax.tree.map(lambda x: x[0], (batches, states))
            gradients, losses = gradient(state.params, frozen, *one, state.step, counts)
        else:
            zero = shares.split(jax.tree.map(jnp.zeros_like, state.params))
            start = (zero, Sums(jnp.float32(0), jnp.zeros((settings.heads,), jnp.float32)))
            (gradients, losses), _ = jax.lax.scan(add, start, (batches, states))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax mixes dtypes
            norm = optax.tree.norm(gradients)
            updates, moved = optimizer.update(gradients, state.optimizer, state.params)
            params = jax.tree.map(jnp.add, state.params, updates)
        return TrainState(state.step + 1, params, moved), StepReport(losses.base, losses.heads, norm)

    return step


def _hidden(
    model: Decoder, batch: Batch, step: jax.Array, settings: TrainingSettings, shares: Shares
) -> tuple[jax.Array, jax.Array]:
    """The hidden states for the backbone's loss and those that the heads read, [batch, length, hidden_size] each."""

    def whole() -> tuple[jax.Array, jax.Array]:
        hidden = hidden_states(model, batch, settings.remat, shares)
        return hidden, hidden

    if not settings.draft_cache_prob:
        return whole()
    chance, prompt = prompt_rows(settings.seed, step, batch.tokens.shape[1])

    def through() -> tuple[jax.Array, jax.Array]:
        return draft_view_states(model, batch, prompt, settings.draft_cache, settings.draft_sinks, shares)

    return jax.lax.cond(chance < settings.draft_cache_prob, through, whole)


def _as(dtype: Any, leaf: jax.Array) -> jax.Array:
    return leaf.astype(dtype)
