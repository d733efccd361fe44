"""The packages that only training needs (the extra `train`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from tokenswift_jax.errors import UserError

PACKAGES = ("grain", "matplotlib", "tensorboardX")


def check_installed(purpose: str = "training", packages: Sequence[str] = PACKAGES) -> None:
    """Checks that the packages for a purpose are installed, before anything heavy begins.

    Raises:
      UserError: a package is missing; the error names all missing packages at once.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{purpose} needs {', '.join(missing)}: pip install 'tokenswift_jax[train]'")
