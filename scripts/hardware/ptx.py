"""Registers and spills of a GPU program's own kernels, as NVIDIA's assembler counts them."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path


def kernel_registers(dumped: Path, architecture: str, kernels: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Registers a thread and bytes spilled of each kernel whose name contains one of `kernels`.

    Args:
      dumped: where XLA and Mosaic GPU put their .ptx files.
      architecture: "sm_80", "sm_90a".
      kernels: parts of names.

    Raises:
      FileNotFoundError: the assembler of the `aot` extra is not installed.
    """
    found: dict[str, dict[str, int]] = {}
    for path in sorted(dumped.glob("*.ptx")):
        command = [str(_assembler()), "-v", "-arch", architecture, "-o", "/dev/null", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        pattern = r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
        for name, spilled, registers in re.findall(pattern, said, re.DOTALL):
            if any(kernel in name for kernel in kernels):
                found[name] = {"registers": int(registers), "spilled_bytes": int(spilled)}
    return found


def _assembler() -> Path:
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    for path in sorted(site.glob("*/bin/ptxas")):
        return path
    raise FileNotFoundError("ptxas is not installed; pip install -e '.[aot]' brings it")
