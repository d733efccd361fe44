"""The packages of the extra `serve`, which the library itself does not need."""

from __future__ import annotations

from importlib.util import find_spec

from tokenswift_jax.errors import UserError

_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def check_installed() -> None:
    """Raises UserError unless the packages of a server are installed."""
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}; install them with: pip install 'tokenswift_jax[serve]'")
