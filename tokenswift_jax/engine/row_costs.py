"""The time of a verification relative to a plain step, as the roofline of the device has it: before anything is
measured, and for the choice of the plans that are worth a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tokenswift_jax.models.config import ModelConfig
from tokenswift_jax.models.forward_cost import forward_cost
from tokenswift_jax.parallel.device_rates import DeviceRates, rates_of

# The rate at which `tree_attention` multiplies, relative to the data sheet's, by a part of the device's name. On an
# H200 64 rows of Llama-3.1-8B took 12.17 ms more after 126,976 tokens than after 16,384
# (benchmarks/2026-11-26-device-h200-contact-second.json): 3.71e12 operations, 305e12 a second of 989e12. An H100 runs
# the same kernel on as many multiprocessors. Nobody has measured another device: the data sheet's rate is taken, so
# that plans of many rows are offered there, and measured.
ATTENTION_RATES = {"H100": 0.31, "H200": 0.31}
# A verification may cost so many plain steps, by the roofline, to be one of no extra time: the goal for 16 rows.
NO_EXTRA_TIME = 1.1
# The tree rows that a plan may have are multiples of 8: a tile of 16 contains 8 rows at 2 query heads a KV head.
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
    """

    config: ModelConfig
    rates: DeviceRates
    attention_rate: float = 1.0
    batch: int = 1
    cache_itemsize: int = 2

    def price(self, rows: int, length: int) -> float:
        """Plain steps that a forward of so many tree rows takes at least, after `length` committed positions."""
        return self._seconds(rows, length) / self._seconds(1, length)

    def most_rows(self, length: int) -> int:
        """The most tree rows that take no extra time after `length` committed positions: FEWEST, or a multiple of STEP
        up to MOST.

        The weights of the layers are read once for all rows, and the K/V of a KV head once for all rows of its query
        heads. So attention is bound by arithmetic from a number of rows on that the query heads a KV head divide, and
        its share of the step grows with the length.
        """
        fit = (rows for rows in range(MOST, 0, -STEP) if self.price(rows, length) <= NO_EXTRA_TIME)
        return next(fit, FEWEST)

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
            attention_rate=self.attention_rate,
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
    rates = None if device.platform == "cpu" else rates_of(device.device_kind)
    if rates is None or jnp.dtype(dtype).itemsize != 2:
        return None
    attention = next((rate for name, rate in ATTENTION_RATES.items() if name in device.device_kind), 1.0)
    return RowCosts(config, rates, attention, batch, jnp.dtype(cache_dtype or dtype).itemsize)
