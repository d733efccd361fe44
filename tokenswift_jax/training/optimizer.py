"""AdamW with warm-up and a rate schedule; heads and backbone have their own rate, decay and clipping."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import optax

from tokenswift_jax.training.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, steps: int, *, heads: bool) -> optax.Schedule:
    """The learning rate by step: linear from 0 over `warmup_steps`, then `lr_schedule`, which ends at `steps`."""
    peak = settings.learning_rate
    if heads and settings.what == "all" and settings.head_learning_rate is not None:
        peak = settings.head_learning_rate
    warmup = min(settings.warmup_steps, steps - 1)
    rest = {
        "cosine": optax.cosine_decay_schedule(peak, max(steps - warmup, 1)),
        "linear": optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        "constant": optax.constant_schedule(peak),
    }[settings.lr_schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup]) if warmup else rest


def make_optimizer(settings: TrainingSettings, steps: int) -> optax.GradientTransformation:
    """The optimizer for {"heads": ..., "backbone": ...} (no backbone if it is frozen); norm scales do not decay."""
    parts: dict[Hashable, optax.GradientTransformation] = {"heads": _adamw(settings, steps, heads=True)}
    if settings.what == "all":
        parts["backbone"] = _adamw(settings, steps, heads=False)
    return optax.partition(parts, {name: name for name in parts})


def _adamw(settings: TrainingSettings, steps: int, *, heads: bool) -> optax.GradientTransformation:
    decay = settings.weight_decay
    if heads and settings.head_weight_decay is not None:
        decay = settings.head_weight_decay
    first, second = settings.betas
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(learning_rate(settings, steps, heads=heads), first, second, weight_decay=decay, mask=_matrices),
    )


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
