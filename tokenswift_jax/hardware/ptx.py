"""Registers and spills of a GPU program's own kernels, as NVIDIA's assembler counts them."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

# XLA of jax 0.11 and later writes PTX only where it is asked for by name; older ones write it anyway.
DUMP_FLAG = "--xla_dump_emitter_re=ptx"


def dump_programs(folder: str) -> None:
    """Makes XLA and Mosaic GPU write PTX, programs and thunks of each compilation to a folder; before jax is imported.

    Without a compilation, a program comes from the persistent cache and XLA dumps nothing of it, so that cache is off.
    """
    os.environ["MOSAIC_GPU_DUMP_TO"] = folder
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} {DUMP_FLAG} {os.environ.get('XLA_FLAGS', '')}"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def kernel_registers(dumped: Path, architecture: str, kernels: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Registers a thread and bytes spilled of each kernel whose name contains one of `kernels`.

    Args:
      dumped: where XLA and Mosaic GPU put their .ptx files.
      architecture: "sm_80", "sm_90a".
      kernels: parts of names.

    Raises:
      FileNotFoundError: the assembler of the `aot` extra is not installed.
      LookupError: the folder has no PTX of such a kernel, so nothing is known of it.
    """
    found: dict[str, dict[str, int]] = {}
    for path in sorted(dumped.glob("*.ptx")):
        command = [str(_assembler()), "-v", "-arch", architecture, "-o", "/dev/null", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        pattern = r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
        for name, spilled, registers in re.findall(pattern, output, re.DOTALL):
            if any(kernel in name for kernel in kernels):
                found[name] = {"registers": int(registers), "spilled_bytes": int(spilled)}
    if not found:
        # Without this, a check for spills reads nothing and finds none.
        raise LookupError(f"{dumped} holds no PTX of {' or '.join(kernels)}: registers and spills cannot be counted")
    return found


def _assembler() -> Path:
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    for path in sorted(site.glob("*/bin/ptxas")):
        return path
    raise FileNotFoundError("ptxas is not installed; pip install -e '.[aot]' brings it")
