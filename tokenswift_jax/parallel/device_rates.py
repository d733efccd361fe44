"""The bytes and operations a second of a device, by its name."""

from __future__ import annotations

from typing import NamedTuple


class DeviceRates(NamedTuple):
    """The figures of a data sheet.

    Attributes:
      bandwidth: of the device's memory, bytes a second.
      operations: dense bfloat16 floating-point operations a second.
    """

    bandwidth: float
    operations: float


# By a part of the device's name: data sheets of NVIDIA (of an H100 and an A100 those with SXM sockets and 80 GB) and of
# Google.
RATES = {
    "A100": DeviceRates(2.039e12, 312e12),
    "H100": DeviceRates(3.35e12, 989e12),
    "H200": DeviceRates(4.8e12, 989e12),
    "v5 lite": DeviceRates(0.819e12, 197e12),
    "v5p": DeviceRates(2.765e12, 459e12),
    "v6": DeviceRates(1.64e12, 918e12),
}


# Other names that JAX knows for the same chips (jax/_src/pallas/mosaic/tpu_info.py).
_OTHER_NAMES = {"v5e": "v5 lite", "TPU v5": "v5p"}


def known_name(kind: str) -> str | None:
    """The name in `RATES` of a device of that name (JAX's `device_kind`); None: unknown."""
    others = (known for name, known in _OTHER_NAMES.items() if name in kind)
    return next((name for name in RATES if name in kind), next(others, None))


def rates_of(kind: str) -> DeviceRates | None:
    """The rates of a device of that name (JAX's `device_kind`); None: unknown."""
    name = known_name(kind)
    return None if name is None else RATES[name]
