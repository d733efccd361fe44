"""The bytes and operations that a step needs, counted from shapes, and the time that a data sheet allows for them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenswift_jax.engine.prefill import ACCELERATOR_ROWS
from tokenswift_jax.hardware.steps import DRAFT_CACHE, rows_of
from tokenswift_jax.hardware.targets import Target
from tokenswift_jax.models.config import ModelConfig


@dataclass(frozen=True)
class Cost:
    """The bytes and operations of one step, over all devices.

    Attributes:
      parts: one after the other, each needing the one before it: bytes of memory traffic, floating-point operations.
    """

    parts: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Bytes of memory traffic of all parts."""
        return sum(part[0] for part in self.parts)

    @property
    def operations(self) -> int:
        """Floating-point operations of all parts."""
        return sum(part[1] for part in self.parts)

    def floor(self, bandwidth: float, operations: float) -> float:
        """Seconds below which no program can be at so many bytes and operations a second: in each part bytes or
        operations, whichever takes longer. A part that is bound by one leaves no time of the other to the next part."""
        return sum(max(part[0] / bandwidth, part[1] / operations) for part in self.parts)

    def seconds(self, target: Target, devices: int) -> float:
        """The floor that a target's data sheet sets, on so many devices."""
        return self.floor(target.bandwidth, target.operations) / devices


def step_cost(name: str, config: ModelConfig, length: int, itemsize: int = 2) -> Cost:
    """The least that a step (of `steps.STEPS`) at `length` committed tokens costs.

    Each weight that takes part and each live position of the cache is read once, each row's K/V and logits are written
    once and read once; values in registers and on-chip memory cost nothing.
    """
    head, heads = config.hidden_size * config.vocab_size, _head_weights(config)
    draft = _pass(config, 1, min(length, DRAFT_CACHE), itemsize)
    # Three chained heads and the backbone give their candidates from one product with the LM head.
    guess = _product(heads, 1, itemsize) + _product(head, 1 + config.num_draft_heads, itemsize)
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


def forward_cost(config: ModelConfig, rows: int, length: int, itemsize: int = 2) -> Cost:
    """The least that a forward of so many rows and their logits at `length` committed tokens costs (`step_cost`)."""
    return Cost((*_pass(config, rows, length, itemsize), *_logits(config, rows, itemsize)))


def parameter_bytes(config: ModelConfig, itemsize: int = 2) -> int:
    """Bytes of all weights, draft heads included."""
    tables = (1 if config.tie_word_embeddings else 2) * config.hidden_size * config.vocab_size
    return itemsize * (config.num_layers * _layer_weights(config) + _head_weights(config) + tables)


def _layer_weights(config: ModelConfig) -> int:
    size, dim = config.hidden_size, config.head_dim
    attention = size * dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return attention + 3 * size * config.intermediate_size


def _head_weights(config: ModelConfig) -> int:
    return config.num_draft_heads * config.hidden_size**2


def _product(weights: int, rows: int, itemsize: int) -> list[tuple[int, int]]:
    return [(weights * itemsize, 2 * weights * rows)]


def _pass(config: ModelConfig, rows: int, length: int, itemsize: int) -> list[tuple[int, int]]:
    """A forward of so many rows over `length` cached positions: weights, cache read, own K/V written."""
    backbone = config.num_layers * _layer_weights(config)
    cell = config.num_layers * 2 * config.num_kv_heads * config.head_dim  # a position's elements of K and V
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * rows * (length + rows)
    return [*_product(backbone, rows, itemsize), (cell * (length + rows) * itemsize, attention)]


def _logits(config: ModelConfig, rows: int, itemsize: int) -> list[tuple[int, int]]:
    """The LM head, and its logits in float32 written and read once."""
    head = config.hidden_size * config.vocab_size
    return [*_product(head, rows, itemsize), (4 * 2 * rows * config.vocab_size, 0)]
