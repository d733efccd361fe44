"""Results of the public reference program, for tests to compare with: ../shared/golden.

A test that asks for it is skipped, with a warning, where it is not there.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest

_FOLDER = Path(__file__).parents[2] / "shared" / "golden"
# checkpoint -> where its arrays are: llama2_yarn's own were made with cos and sin rounded to float16
_ARRAYS = {"llama2_yarn": "llama2_yarn_fp32rope", "llama3_1": "llama3_1"}
# Two chunkings of one computation differ by up to 1e-5 inside the reference; ten times that.
BOUND = 1e-4

each_checkpoint = pytest.mark.parametrize("name", _ARRAYS)


def checkpoint(name: str) -> Path:
    """A checkpoint's directory."""
    return _present(_FOLDER / name / "model.safetensors").parent


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The reference's results for a checkpoint, by name."""
    with np.load(_present(_FOLDER / _ARRAYS[name] / "golden.npz")) as golden:
        return dict(golden)


def _present(path: Path) -> Path:
    if not path.is_file():
        warnings.warn(f"{path} is not there: NO comparison with the reference program", stacklevel=3)
        pytest.skip(f"needs {path.name} of the golden checkpoints")
    return path
