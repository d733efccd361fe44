"""Targets of ahead-of-time compilation, and the figures of their data sheets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from tokenswift_jax.parallel.device_rates import RATES


@dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
      kind: the platform, which decides the kernels.
      topology: name of a slice of 8 devices for `jax.experimental.topologies`; of a GPU its description for XLA.
      memory: bytes of one device.
      bandwidth: of its memory, bytes a second.
      operations: dense bfloat16 floating-point operations a second.
    """

    kind: Literal["tpu", "gpu"]
    topology: str
    memory: int
    bandwidth: float
    operations: float


# Without a driver's version XLA takes one older than CUDA 12.3 (cost: programs without conditional and loop nodes in
# their graphs, unlike on a machine with a current driver).
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 driver_version: "13.0.0"
  {fields}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }} device_description_str: "{name}" """
_A100 = _GPU.format(
    name="A100-SXM4-80GB",
    fields="shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108 fpus_per_core: 64 "
    "memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 80000000000 "
    "cuda_compute_capability { major: 8 minor: 0 }",
)
_H200 = _GPU.format(
    name="NVIDIA H200",
    fields="shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128 "
    "memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 141000000000 "
    "cuda_compute_capability { major: 9 minor: 0 }",
)

# Memory as NVIDIA's and Google's data sheets give it for one GPU or chip.
TARGETS: dict[str, Target] = {
    "v5e": Target("tpu", "v5e:2x4", 16 * 2**30, *RATES["v5 lite"]),
    "v5p": Target("tpu", "v5p:2x2x2", 95 * 2**30, *RATES["v5p"]),
    "v6e": Target("tpu", "v6e:2x4", 32 * 2**30, *RATES["v6"]),
    "a100": Target("gpu", _A100, 80 * 10**9, *RATES["A100"]),
    "h200": Target("gpu", _H200, 141 * 10**9, *RATES["H200"]),
}


def compile_without_hardware() -> None:
    """Sets the environment for it; before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    # Without these, libtpu looks for the chips and the metadata server of a TPU machine.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}


def devices(target: Target) -> list[Any]:
    """Descriptions of 8 devices of one slice or host, which need not be here."""
    from jax.experimental import topologies

    if target.kind == "tpu":
        return list(topologies.get_topology_desc(platform="tpu", topology_name=target.topology).devices)
    described = topologies.get_topology_desc(
        topology_name="gpu", platform="cuda", topology="1x1x8", target_config=target.topology
    )
    return list(described.devices)
