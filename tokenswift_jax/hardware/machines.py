"""Whole machines of the devices in `targets`: so many direct neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenswift_jax.hardware.targets import TARGETS, Target
from tokenswift_jax.parallel.step_time import MESH_RATES, MeshRates


@dataclass(frozen=True)
class Machine:
    """Devices that are direct neighbours.

    Attributes:
      target: of `targets.TARGETS`.
      kind: of `step_time.MESH_RATES`.
      devices: how many.
      topology: a slice's; None: the target's own.
    """

    target: str
    kind: str
    devices: int
    topology: str | None = None

    @property
    def described(self) -> Target:
        """The target with this machine's topology."""
        target = TARGETS[self.target]
        return target if self.topology is None else replace(target, topology=self.topology)

    @property
    def rates(self) -> MeshRates:
        """The rates of its devices and links."""
        return MESH_RATES[self.kind]


# Google names slices of v5p by their cores: a v5p-8 has four chips, which JAX shows as four devices.
MACHINES = {
    "v5e-8": Machine("v5e", "v5 lite", 8),
    "v5p-8": Machine("v5p", "v5p", 4, "v5p:2x2x1"),
    "v5p-16": Machine("v5p", "v5p", 8),
    "v6e-4": Machine("v6e", "v6", 4, "v6e:2x2"),
    "v6e-8": Machine("v6e", "v6", 8),
    "8x A100": Machine("a100", "A100", 8),
    "8x H200": Machine("h200", "H200", 8),
}
