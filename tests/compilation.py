"""Flags by which XLA compiles for tests."""

from importlib.metadata import version

DEVICES = "--xla_force_host_platform_device_count=8"
# XLA's older way to make loops of fusions compiles in half the time. XLA ends at a flag it does not know, and jax 0.12
# knows the newer way alone.
OLD_FUSIONS = "xla_cpu_use_fusion_emitters" if version("jaxlib").startswith("0.10.") else None
# Workers of pytest use the cores; within one, dividing a program only costs.
QUICK = f"{DEVICES} --xla_cpu_parallel_codegen_split_count=1" + (f" --{OLD_FUSIONS}=false" if OLD_FUSIONS else "")
