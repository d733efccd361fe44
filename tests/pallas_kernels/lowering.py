"""Lowering for accelerators, as far as it goes without the device's own compiler."""

import jax
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels.implementation import compiling_for

_TARGETS = {"tpu": ("tpu", "tpu_custom_call"), "gpu": ("cuda", "__gpu$xla.gpu.triton")}


def calls_a_kernel(name, function, *arguments):
    """Whether the function of such arguments, lowered for "tpu" or "gpu", calls a kernel of ours."""
    return _TARGETS[name][1] in lowered(name, function, *arguments)


def lowered(name, function, *arguments, gpu=None):
    """The text of the function of such arguments, lowered for "tpu" or "gpu"."""
    checks = [export.DisabledSafetyCheck.custom_call(call) for call in ("__gpu$xla.gpu.triton", "mosaic_gpu_v2")]
    # Newer jax asks which GPU it lowers for.
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), abstract_device=device if name == "gpu" else None)
    with compiling_for(name, gpu=gpu), jax.sharding.use_abstract_mesh(mesh):
        exported = export.export(jax.jit(function), platforms=[_TARGETS[name][0]], disabled_checks=checks)
        return exported(*arguments).mlir_module()
