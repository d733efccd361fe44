"""Parameters, AdamW moments and the jitted training step of each phase."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from demo.attention import blocked_attention
from demo.losses import backbone_pass, head_losses
from demo.recipe import Phase, Recipe
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.decoder import Decoder

ATTENTION_BLOCK = 256  # queries a block: below it one block is the whole window


class Learner(NamedTuple):
    """Backbone and heads, each with its optimizer state."""

    backbone: Any
    heads: Any
    backbone_optimizer: Any
    head_optimizer: Any


class Rates(NamedTuple):
    """Learning rates of one step, float32 scalars."""

    backbone: np.float32
    heads: np.float32


def split_decoder(config: ModelConfig, seed: int) -> tuple[Any, Any, Any]:
    """Graph definition, head parameters and backbone parameters (float32) of a fresh decoder."""
    model = Decoder(config, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(seed))
    for layer in model.layers:  # the residual stream sums 2 * layers terms: start them small
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.kernel[...] = linear.kernel[...] * jnp.float32((2 * config.num_layers) ** -0.5)
    return nnx.split(model, nnx.PathContains("draft_heads"), ...)


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW without its learning rate, which `step` multiplies in; norms' scales do not decay."""
    settings = recipe.optimizer
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(*settings.betas),
        optax.add_decayed_weights(settings.weight_decay, mask=partial(jax.tree.map, lambda x: x.ndim > 1)),
    )


def start(recipe: Recipe, seed: int) -> tuple[Any, Learner]:
    """Graph definition and a learner that has seen nothing."""
    graph, heads, backbone = split_decoder(recipe.model, seed)
    rule = optimizer(recipe)
    return graph, Learner(backbone, heads, rule.init(backbone), rule.init(heads))


def rates(recipe: Recipe, progress: float) -> Rates:
    """Linear warm-up, then linear decay to zero at the end of the backbone's part (heads: of the run)."""
    settings = recipe.optimizer
    warm = min(1.0, (progress + 1e-4) / settings.warmup_share)
    left = max(0.0, 1.0 - progress / recipe.backbone_share)
    return Rates(
        np.float32(settings.learning_rate * warm * left),
        np.float32(settings.head_learning_rate * warm * (1.0 - progress)),
    )


def _moved(rule: optax.GradientTransformation, gradients: Any, state: Any, params: Any, rate: Any) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax mixes dtypes
        updates, state = rule.update(gradients, state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), state


def make_step(graph: Any, recipe: Recipe, phase: Phase) -> Callable[..., tuple[Learner, jax.Array, jax.Array]]:
    """The jitted step (learner, rates, tokens, positions, offset) -> (learner, backbone loss, head losses [heads])."""
    rule, attention = optimizer(recipe), blocked_attention(ATTENTION_BLOCK)

    def run_heads(heads: Any, backbone: Any, hidden: Any, logits: Any, positions: Any, offset: Any) -> Any:
        model = nnx.merge(graph, heads, backbone)
        losses = head_losses(model, hidden, logits, positions[:, :-1], offset, phase.head_stride)
        return jnp.sum(losses), losses

    def run_backbone(backbone: Any, heads: Any, tokens: Any, positions: Any) -> Any:
        loss, hidden, logits = backbone_pass(nnx.merge(graph, heads, backbone), tokens, positions, attention)
        return loss, (hidden, logits)

    @partial(jax.jit, donate_argnums=0)
    def step(learner: Learner, rate: Rates, tokens: Any, positions: Any, offset: Any) -> Any:
        backbone, heads, backbone_state, head_state = learner
        if phase.freeze_backbone:
            loss, (hidden, logits) = run_backbone(backbone, heads, tokens, positions)
        else:
            graded = jax.value_and_grad(run_backbone, has_aux=True)
            (loss, (hidden, logits)), gradients = graded(backbone, heads, tokens, positions)
        # the heads learn from the backbone's values, never the other way round: no gradient passes between them
        head_graded = jax.value_and_grad(run_heads, has_aux=True)
        (_, losses), head_gradients = head_graded(heads, backbone, hidden, logits, positions, offset)
        if not phase.freeze_backbone:
            backbone, backbone_state = _moved(rule, gradients, backbone_state, backbone, rate.backbone)
        heads, head_state = _moved(rule, head_gradients, head_state, heads, rate.heads)
        return Learner(backbone, heads, backbone_state, head_state), loss, losses

    return step
