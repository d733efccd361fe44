"""The bytes and operations that a step needs, counted from shapes."""

from __future__ import annotations

from tokenswift_jax.hardware.steps import DRAFT_CACHE, is_prefill, plan_named, rows_of
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
    if is_prefill(name):
        parts = _pass(config, rows_of(name), length, itemsize)
    elif name == "plain":
        return forward_cost(config, 1, length, itemsize)
    elif name == "draft":
        parts = [*draft, *guess]
    elif shared := _shared_heads(name, config):
        rows = rows_of(name)
        lines = rows * (1 + shared)  # one product with the LM head; all its logits are written
        parts = [*_pass(config, rows, length, itemsize), product_part(heads, rows, itemsize)]
        parts.append(product_part(head, lines, itemsize))
        # The draws read the tree rows' logits; the heads' of one row are read, written and read again.
        parts.append((4 * config.vocab_size * (lines + rows + 3 * shared), 0))
    else:
        parts = [*forward_cost(config, rows_of(name), length, itemsize).parts, *guess]
        parts += draft if name.startswith("partial") else []
    return Cost(tuple(parts))


def chunk_cost(name: str, config: ModelConfig, itemsize: int = 2) -> Cost:
    """The least that a chunk of iterations costs before the first one: the draft heads' logits, if the verification
    computes those of the later iterations (`Plan.heads_verified`)."""
    shared = _shared_heads(name, config)
    if not shared:
        return Cost(())
    head = product_part(config.hidden_size * config.vocab_size, shared, itemsize)
    return Cost((product_part(_head_weights(config), 1, itemsize), head, (4 * shared * config.vocab_size, 0)))


def _shared_heads(name: str, config: ModelConfig) -> int:
    return 0 if is_prefill(name) else plan_named(name, config).heads_verified(1)


def parameter_bytes(config: ModelConfig, itemsize: int = 2) -> int:
    """Bytes of all weights, draft heads included."""
    tables = (1 if config.tie_word_embeddings else 2) * config.hidden_size * config.vocab_size
    return itemsize * (config.num_layers * layer_weights(config) + _head_weights(config) + tables)


def _head_weights(config: ModelConfig) -> int:
    return config.num_draft_heads * config.hidden_size**2


def _pass(config: ModelConfig, rows: int, length: int, itemsize: int) -> list[Part]:
    """A forward of so many rows over `length` cached positions, without logits."""
    return [layers_part(config, rows, itemsize), attention_part(config, rows, length, itemsize)]
