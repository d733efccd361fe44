"""Block-cyclic positions: devices take turns, a block of the text at a time, so that a growing text stays balanced."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

BLOCK = 16  # positions of a turn where no draft cache selects larger blocks: the least of `speculation.DRAFT_BLOCKS`
SLOTS = 256  # a device's slots are a multiple, as the capacity of a cache on one device is


@dataclass(frozen=True)
class Cyclic:
    """Position p is stored on device p // block % devices. A device stores its positions in text order, without gaps.

    Attributes:
      devices: how many take turns.
      block: positions of a turn; SLOTS is a multiple of it.
    """

    devices: int = 1
    block: int = BLOCK

    def slots(self, capacity: int) -> int:
        """The slots of each device for so many positions, rounded up to a multiple of SLOTS."""
        return -(-capacity // (self.devices * SLOTS)) * SLOTS

    def most(self, positions: int) -> int:
        """The most of so many consecutive positions that a device can have to store."""
        turns, rest = divmod(positions, self.devices * self.block)
        return turns * self.block + min(rest, self.block)

    def below(self, position: jax.Array, device: jax.Array) -> jax.Array:
        """How many of the positions below this one, int32 [...], a device stores: the slot of its next one."""
        turns, rest = position // (self.devices * self.block), position % (self.devices * self.block)
        return turns * self.block + jnp.clip(rest - device * self.block, 0, self.block)

    def device(self, position: jax.Array) -> jax.Array:
        """The device of a position."""
        return position // self.block % self.devices

    def slot(self, position: jax.Array) -> jax.Array:
        """The slot of a position on its device."""
        return position // (self.devices * self.block) * self.block + position % self.block

    def position(self, slot: jax.Array, device: jax.Array) -> jax.Array:
        """The position that a device stores in a slot."""
        return (slot // self.block * self.devices + device) * self.block + slot % self.block
