"""The bytes and operations that a step needs, counted from shapes."""

from __future__ import annotations

from tokenswift_jax.engine.prefill import ACCELERATOR_ROWS
from tokenswift_jax.hardware.steps import DRAFT_CACHE, rows_of
from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import (
    Cost,
    Part,
    attention_part,
    forward_cost,
    layer_weights,
    layers_part,
    product_part,
)


def step_cost(name: str, config: ModelConfig, length: int, itemsize: int = 2) -> Cost:
    """The least that a step (of `steps.STEPS`) at `length` committed tokens costs, counted as by `forward_cost`."""
    head, heads = config.hidden_size * config.vocab_size, _head_weights(config)
    draft = _pass(config, 1, min(length, DRAFT_CACHE), itemsize)
    # Three chained heads and the backbone give their candidates from one product with the LM head.
    guess = [product_part(heads, 1, itemsize), product_part(head, 1 + config.num_draft_heads, itemsize)]
    guess.append((4 * 2 * (1 + config.num_draft_heads) * config.vocab_size, 0))
    if name == "prefill":
        parts = _pass(config, ACCELERATOR_ROWS, length, itemsize)
    elif name == "plain":
        return forward_cost(config, 1, length, itemsize)
    elif name == "draft":
        parts = [*draft, *guess]
    else:
        parts = [*forward_cost(config, rows_of(name), length, itemsize).parts, *guess]
        parts += draft if name.startswith("partial") else []
    return Cost(tuple(parts))


def parameter_bytes(config: ModelConfig, itemsize: int = 2) -> int:
    """Bytes of all weights, draft heads included."""
    tables = (1 if config.tie_word_embeddings else 2) * config.hidden_size * config.vocab_size
    return itemsize * (config.num_layers * layer_weights(config) + _head_weights(config) + tables)


def _head_weights(config: ModelConfig) -> int:
    return config.num_draft_heads * config.hidden_size**2


def _pass(config: ModelConfig, rows: int, length: int, itemsize: int) -> list[Part]:
    """A forward of so many rows over `length` cached positions, without logits."""
    return [layers_part(config, rows, itemsize), attention_part(config, rows, length, itemsize)]
