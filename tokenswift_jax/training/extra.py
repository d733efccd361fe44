"""The packages that only training needs (the extra `train`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tokenswift_jax.errors import UserError

PACKAGES = ("grain", "matplotlib", "tensorboardX")


def check_installed(purpose: str = "training", packages: Sequence[str] = PACKAGES) -> None:
    """Says which packages are missing for a purpose, all at once and before anything heavy begins.

    Raises:
      UserError: one of them is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{purpose} needs {', '.join(missing)}: pip install 'tokenswift_jax[train]'")
