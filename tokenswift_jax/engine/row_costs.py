"""The time of a verification relative to a plain step, by the roofline of the device. It serves before anything is
measured, and chooses the plans that are worth a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import forward_cost
from tokenswift_jax.parallel.device_rates import DeviceRates, rates_of

# The rate at which `tree_attention` multiplies, relative to the data sheet's, by a part of the device's name. On an
# H200 attention of 64 rows of Llama-3.1-8B took 32 x 0.26 ms more after 126,976 tokens than after 16,384
# (128x64x8x3 in benchmarks/2026-11-27-device-h200-contact-fourth.json): 3.71e12 operations, 446e12 a second of 989e12.
# An H100 runs the same kernel on as many multiprocessors. Nobody has measured another device: the data sheet's rate is
# taken, so that plans of many rows are offered there, and measured.
ATTENTION_RATES = {"H100": 0.45, "H200": 0.45}
# Tree rows times query heads a KV head that a program of `tree_attention` multiplies on GPUs; more of them are several
# programs of the largest. A program takes the time of a full one: on an H200, 16 rows of groups of 5 (Qwen2.5-14B) cost
# 1.47 plain steps after 126,976 tokens, 16 rows of groups of 4 (Llama-3.1-8B) 1.06.
GPU_TILES = (16, 32, 64, 128)
# A verification that costs at most so many plain steps by the roofline counts as taking no extra time: the goal for 16
# rows.
NO_EXTRA_TIME = 1.1
# Without tiles, the tree rows that a plan may have are multiples of 8.
FEWEST, MOST, STEP = 4, 64, 8
NARROW = 16  # tree rows of a second plan, whose drafts are the likeliest ones


@dataclass(frozen=True)
class RowCosts:
    """Prices of verifications of one model on one device.

    Attributes:
      config: the model's.
      rates: of one device.
      attention_rate: the rate of attention's products relative to that of all others.
      batch: texts that a device decodes at once.
      cache_itemsize: bytes of an element of the full cache; a weight has two.
      tiles: heights of the programs of attention, rising; () for programs of any height.
    """

    config: ModelConfig
    rates: DeviceRates
    attention_rate: float = 1.0
    batch: int = 1
    cache_itemsize: int = 2
    tiles: tuple[int, ...] = ()

    def price(self, rows: int, length: int) -> float:
        """Plain steps that a forward of so many tree rows takes at least, after `length` committed positions."""
        return self._seconds(rows, length) / self._seconds(1, length)

    def most_rows(self, length: int) -> int:
        """The most tree rows that take no extra time after `length` committed positions, at least FEWEST: rows that
        fill the programs of attention, and no more than MOST.

        The weights of the layers are read once for all rows, and the K/V of a KV head once for all rows of its query
        heads. So the more query heads a KV head has, the fewer rows make arithmetic the bound of attention, whose share
        of the step grows with the length.
        """
        fit = (rows for rows in self._full() if self.price(rows, length) <= NO_EXTRA_TIME)
        return next(fit, FEWEST)

    def _full(self) -> list[int]:
        """The numbers of tree rows that fill the programs of attention, falling."""
        if not self.tiles:
            return list(range(MOST, 0, -STEP))
        heights = {*self.tiles, *range(self.tiles[-1], MOST * self._group + 1, self.tiles[-1])}
        found = {min(height // self._group, MOST) for height in heights}
        return sorted((rows for rows in found if rows >= FEWEST), reverse=True)

    @property
    def _group(self) -> int:
        return self.config.num_heads // self.config.num_kv_heads

    def _filled(self, rows: int) -> float:
        """The share of the programs' height that so many tree rows fill."""
        asked, largest = rows * self._group, self.tiles[-1] if self.tiles else 1
        multiple = -(-asked // largest) * largest
        return asked / next((tile for tile in self.tiles if tile >= asked), multiple)

    def node_budgets(self, begin: int, end: int) -> tuple[int, ...]:
        """Node budgets for a text that grows from `begin` to `end` positions, rising: the most that takes no extra time
        at the beginning, and NARROW rows or what takes none at the end."""
        narrow, wide = min(NARROW, self.most_rows(end)), self.most_rows(begin)
        return tuple(sorted({narrow - 1, wide - 1}))

    def _seconds(self, rows: int, length: int) -> float:
        cost = forward_cost(
            self.config,
            rows,
            length,
            batch=self.batch,
            cache_itemsize=self.cache_itemsize,
            attention_rate=self.attention_rate * self._filled(rows),
        )
        return cost.seconds(self.rates, 1)


def row_costs_of(config: ModelConfig, dtype: Any, batch: int, cache_dtype: str | None = None) -> RowCosts | None:
    """The costs on the attached device; None on a CPU, on a device without known rates, and for weights that do not
    have the two bytes of the rates' products.

    Args:
      config: of the model.
      dtype: of the weights.
      batch: texts that a device decodes at once.
      cache_dtype: the number format of the full cache; None: that of the weights.
    """
    device = jax.devices()[0]
    if jnp.dtype(dtype).itemsize != 2:
        return None
    itemsize = jnp.dtype(cache_dtype or dtype).itemsize
    return row_costs_on(device.platform, device.device_kind, config, batch, itemsize)


def row_costs_on(
    platform: str, kind: str, config: ModelConfig, batch: int = 1, cache_itemsize: int = 2
) -> RowCosts | None:
    """The costs on a device by its platform and name (JAX's `device_kind`), as `row_costs_of`."""
    rates = None if platform == "cpu" else rates_of(kind)
    if rates is None:
        return None
    attention = next((rate for name, rate in ATTENTION_RATES.items() if name in kind), 1.0)
    return RowCosts(config, rates, attention, batch, cache_itemsize, GPU_TILES if platform == "gpu" else ())
