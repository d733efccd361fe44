"""The expected time of a step on a mesh: its bytes at the speed that decoding steps reach, and of each collective the
latency and the bytes.

A formula for choices between meshes, within some 10% of the measured times that its tests name; not a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tokenswift_jax.parallel.device_rates import RATES, DeviceRates, known_name


class Links(NamedTuple):
    """The collectives of devices that are direct neighbours: GPUs of one machine, chips of one slice.

    A sum of few bytes over n devices takes `start + doubling * log2(n) + hop * n` seconds.

    Attributes:
      start, doubling, hop: seconds.
      gather: the latency of a gather relative to that of a sum.
      bandwidth: bytes a second that a device sends to its neighbours.
    """

    start: float
    doubling: float
    hop: float
    gather: float
    bandwidth: float


class MeshRates(NamedTuple):
    """The rates by which a step on a mesh is timed.

    Attributes:
      device: the data sheet's.
      reached: the share of the data sheet's bandwidth that a plain decoding step on one device reaches.
      links: between the devices.
    """

    device: DeviceRates
    reached: float
    links: Links


class Collective(NamedTuple):
    """Collectives of one kind and size in a step.

    Attributes:
      kind: as XLA names it, such as "all-reduce".
      bytes: of its result on a device; of a reduce-scatter, of what a device gives.
      devices: that take part in it.
      count: how often a step runs it.
    """

    kind: str
    bytes: int
    devices: int
    count: int


@dataclass(frozen=True)
class StepTime:
    """The parts of a step's expected time, in seconds.

    Attributes:
      work: of each device by itself: its memory traffic, or its products where these take longer.
      latency: of all collectives.
      sending: the bytes of all collectives.
    """

    work: float
    latency: float
    sending: float

    @property
    def total(self) -> float:
        """Seconds of the step: no part hides another."""
        return self.work + self.latency + self.sending


# GPUs: both constants are the least squares of gpt-fast's times of Llama-2-7B on 2, 4 and 8 A100s, 16.6, 22.1 and
# 26.4 us for each of its 64 sums (github.com/pytorch-labs/gpt-fast, README; its LM head is not split). A fit to 2 and 4
# alone predicts that 8 gain 3.06x; gpt-fast measured 3.13x. NCCL 2.18 takes 22.7 us for a small sum over 4 H100s and
# 16.8 us for a gather (github.com/waynehacking8/nccl-collectives-bench).
# Bandwidth: NVLink 3 and 4 one way, by NVIDIA's data sheets.
_GPU = Links(start=12.0e-6, doubling=4.9e-6, hop=0.0, gather=0.74, bandwidth=300e9)
# TPUs: 1 us a hop; a gather passes n / 2 neighbours on a ring used both ways, a sum twice as many. Bandwidth: both
# ways of one axis (jax-ml.github.io/scaling-book: 4.5e10 bytes a second and way for v5e, 9e10 for v5p and v6e).
_TPU = Links(start=0.0, doubling=0.0, hop=1e-6, gather=0.5, bandwidth=180e9)
# Reached: A100: gpt-fast's 7B on one, 13.2 GB in 9.53 ms. H100, H200: Llama-3.1-8B on an H200, 66% after 4,096 and 77%
# after 126,976 tokens (docs/accelerators.md). TPUs: 85%, Llama-70B in int8 on 16 v5e (github.com/jax-ml/
# jax-llm-examples, llama3).
MESH_RATES = {
    "A100": MeshRates(RATES["A100"], 0.68, _GPU),
    "H100": MeshRates(RATES["H100"], 0.7, _GPU._replace(bandwidth=450e9)),
    "H200": MeshRates(RATES["H200"], 0.7, _GPU._replace(bandwidth=450e9)),
    "v5 lite": MeshRates(RATES["v5 lite"], 0.85, _TPU._replace(bandwidth=90e9)),
    "v5p": MeshRates(RATES["v5p"], 0.85, _TPU),
    "v6": MeshRates(RATES["v6"], 0.85, _TPU),
}
_UNKNOWN = {
    "tpu": MeshRates(DeviceRates(1e12, 200e12), 0.85, _TPU),
    "gpu": MeshRates(DeviceRates(1e12, 200e12), 0.7, _GPU),
}


def mesh_rates_of(kind: str, platform: str = "gpu") -> MeshRates:
    """The rates of a device of that name (JAX's `device_kind`); those of a middling one of its platform if unknown."""
    name = known_name(kind)
    return _UNKNOWN.get(platform, _UNKNOWN["gpu"]) if name is None else MESH_RATES[name]


def latency(links: Links, collective: Collective) -> float:
    """Seconds of the collective, run once, if it had no bytes."""
    if collective.devices == 1:
        return 0.0
    whole = links.start + links.doubling * math.log2(collective.devices) + links.hop * collective.devices
    return whole if collective.kind == "all-reduce" else links.gather * whole


def step_time(
    rates: MeshRates, memory_bytes: float, collectives: Iterable[Collective], operations: float = 0.0
) -> StepTime:
    """The expected time of a step.

    Args:
      rates: of the devices.
      memory_bytes: that each device reads and writes in its own memory.
      collectives: all of the step.
      operations: floating-point operations of each device.
    """
    collectives = list(collectives)
    waits = sum(each.count * latency(rates.links, each) for each in collectives)
    sent = sum(each.count * each.bytes * _sent(each) for each in collectives)
    work = max(memory_bytes / (rates.reached * rates.device.bandwidth), operations / rates.device.operations)
    return StepTime(work, waits, sent / rates.links.bandwidth)


def _sent(collective: Collective) -> float:
    """Bytes that a device sends for each byte of the collective: a ring passes all parts but one's own on, and a sum
    passes them twice."""
    part = (collective.devices - 1) / collective.devices
    return 2 * part if collective.kind == "all-reduce" else part
