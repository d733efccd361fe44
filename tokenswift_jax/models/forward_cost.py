"""The bytes and operations that a forward of a decoder needs, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tokenswift_jax.models.config import ModelConfig

Part = tuple[int, int]  # bytes of memory traffic, floating-point operations


class Rates(Protocol):
    """A device's bytes and operations a second."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second of its memory."""
        ...

    @property
    def operations(self) -> float:
        """Dense floating-point operations a second."""
        ...


@dataclass(frozen=True)
class Cost:
    """The bytes and operations of one step, over all devices.

    Attributes:
      parts: one after the other, each needing the one before it: bytes of memory traffic, floating-point operations.
    """

    parts: tuple[Part, ...]

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

    def seconds(self, rates: Rates, devices: int) -> float:
        """The floor that a data sheet sets, on so many devices."""
        return self.floor(rates.bandwidth, rates.operations) / devices


def forward_cost(
    config: ModelConfig,
    rows: int,
    length: int,
    itemsize: int = 2,
    *,
    batch: int = 1,
    cache_itemsize: int | None = None,
    attention_rate: float = 1.0,
) -> Cost:
    """The least that a forward of so many rows and their logits costs.

    Each weight that takes part and each live position of the cache is read once, each row's K/V and logits are written
    once and read once; values in registers and on-chip memory cost nothing.

    Args:
      config: of the model.
      rows: rows of each text.
      length: committed tokens of each text.
      itemsize: bytes of a weight.
      batch: texts.
      cache_itemsize: bytes of an element of the cache; None: `itemsize`.
      attention_rate: the rate of attention's products relative to that of all others; below 1 they count as more
        operations.
    """
    attention = attention_part(config, rows, length, cache_itemsize or itemsize, batch, attention_rate)
    return Cost((layers_part(config, rows * batch, itemsize), attention, *logits_parts(config, rows * batch, itemsize)))


def layer_weights(config: ModelConfig) -> int:
    """Weights of a layer, norms and biases excepted."""
    size, dim = config.hidden_size, config.head_dim
    attention = size * dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return attention + 3 * size * config.intermediate_size


def product_part(weights: int, rows: int, itemsize: int) -> Part:
    """A product of so many rows with so many weights, which are read once."""
    return weights * itemsize, 2 * weights * rows


def layers_part(config: ModelConfig, rows: int, itemsize: int) -> Part:
    """The products of so many rows with all layers' weights."""
    return product_part(config.num_layers * layer_weights(config), rows, itemsize)


def attention_part(
    config: ModelConfig, rows: int, length: int, itemsize: int, batch: int = 1, rate: float = 1.0
) -> Part:
    """All layers' attention over `length` cached positions, or over as many as a layer's window; own K/V written."""
    seen = sum(length if window is None else min(length, window) for window in config.sliding_windows)
    positions = batch * (seen + config.num_layers * rows)
    cell = 2 * config.num_kv_heads * config.head_dim  # a position's elements of K and V
    operations = 4 * config.num_heads * config.head_dim * rows * positions
    return cell * positions * itemsize, operations if rate == 1 else round(operations / rate)


def logits_parts(config: ModelConfig, rows: int, itemsize: int) -> tuple[Part, Part]:
    """The LM head, and its logits in float32 written and read once."""
    return product_part(config.hidden_size * config.vocab_size, rows, itemsize), (4 * 2 * rows * config.vocab_size, 0)
