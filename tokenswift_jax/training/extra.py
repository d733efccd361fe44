"""The packages that only training needs (the extra `train`)."""

from __future__ import annotations

from importlib.util import find_spec

from tokenswift_jax.errors import UserError

PACKAGES = ("grain", "matplotlib", "tensorboardX")


def check_installed() -> None:
    """Says which packages are missing, all at once and before anything heavy begins.

    Raises:
      UserError: one of them is not installed.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"training needs {', '.join(missing)}: pip install 'tokenswift_jax[train]'")
