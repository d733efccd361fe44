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
from demo.recipe import OptimizerRecipe, Phase, Recipe
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
    graph, heads, backbone = nnx.split(model, nnx.PathContains("draft_heads"), ...)
    return graph, heads, backbone


def optimizer(settings: OptimizerRecipe, weight_decay: float) -> optax.GradientTransformation:
    """AdamW without its learning rate, which `step` multiplies in; norms' scales do not decay."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.scale_by_adam(*settings.betas),
        optax.add_decayed_weights(weight_decay, mask=partial(jax.tree.map, lambda x: x.ndim > 1)),
    )


def optimizers(recipe: Recipe) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The backbone's rule and the heads'."""
    settings = recipe.optimizer
    return optimizer(settings, settings.weight_decay), optimizer(settings, settings.head_weight_decay)


def start(recipe: Recipe, seed: int) -> tuple[Any, Learner]:
    """Graph definition and a learner that has seen nothing."""
    graph, heads, backbone = split_decoder(recipe.model, seed)
    rule, head_rule = optimizers(recipe)
    return graph, Learner(backbone, heads, rule.init(backbone), head_rule.init(heads))


def rates(recipe: Recipe, progress: float) -> Rates:
    """Linear warm-up, then linear decay to zero at the end of the backbone's part.

    The heads' rate starts over when the backbone stands still, and falls to zero at the end of the run.
    """
    settings, share = recipe.optimizer, recipe.backbone_share
    warm = min(1.0, (progress + 1e-4) / settings.warmup_share)
    left = 1.0 - progress / share if progress < share else 0.0
    heads_left = left if progress < share else (1.0 - progress) / (1.0 - share)
    return Rates(
        np.float32(settings.learning_rate * warm * left), np.float32(settings.head_learning_rate * warm * heads_left)
    )


def _moved(rule: optax.GradientTransformation, gradients: Any, state: Any, params: Any, rate: Any) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax mixes dtypes
        updates, state = rule.update(gradients, state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), state


def make_step(graph: Any, recipe: Recipe, phase: Phase) -> Callable[..., tuple[Learner, jax.Array, jax.Array]]:
    """The jitted step (learner, rates, tokens, positions, offset) -> (learner, backbone loss, head losses [heads])."""
    (rule, head_rule), attention = optimizers(recipe), blocked_attention(ATTENTION_BLOCK)

    def losses(backbone: Any, heads: Any, tokens: Any, positions: Any, offset: Any) -> Any:
        loss, hidden, logits = backbone_pass(nnx.merge(graph, heads, backbone), tokens, positions, attention)
        logits = jax.lax.stop_gradient(logits)  # the teacher does not move towards its pupils
        if not phase.head_weight:
            hidden, backbone = jax.lax.stop_gradient((hidden, backbone))
        model = nnx.merge(graph, heads, backbone)
        guesses = head_losses(model, hidden, logits, positions[:, :-1], offset, phase.head_stride)
        # Adam does not see the scale of the heads' own gradient, so one weight serves both
        return loss + (phase.head_weight or 1.0) * jnp.sum(guesses), (loss, guesses)

    @partial(jax.jit, donate_argnums=0)
    def step(learner: Learner, rate: Rates, tokens: Any, positions: Any, offset: Any) -> Any:
        backbone, heads, backbone_state, head_state = learner
        if phase.freeze_backbone:
            graded = jax.grad(losses, argnums=1, has_aux=True)
            head_gradients, reported = graded(backbone, heads, tokens, positions, offset)
        else:
            graded = jax.grad(losses, argnums=(0, 1), has_aux=True)
            (gradients, head_gradients), reported = graded(backbone, heads, tokens, positions, offset)
            backbone, backbone_state = _moved(rule, gradients, backbone_state, backbone, rate.backbone)
        heads, head_state = _moved(head_rule, head_gradients, head_state, heads, rate.heads)
        return Learner(backbone, heads, backbone_state, head_state), *reported

    return step
