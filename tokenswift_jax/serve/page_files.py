"""The page: static files of the package, and nothing else."""

from __future__ import annotations

import functools
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from tokenswift_jax.serve.openai.errors import ApiError

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Model text is data: the browser runs the package's own modules alone, and refuses to make markup of text.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PREFIX = "/page/"


async def index(_: Request) -> Response:
    """The page."""
    return _file("index.html")


async def asset(request: Request) -> Response:
    """A file of the page, or 404."""
    name = str(request.path_params["name"])
    if name not in names():
        return ApiError(404, f"there is nothing at {request.url.path[:100]}").response()
    return _file(name)


@functools.cache
def names() -> frozenset[str]:
    """The names of the files."""
    return frozenset(path.name for path in FOLDER.iterdir() if path.suffix in KINDS)


def public_paths() -> frozenset[str]:
    """The paths that need no key: the files tell nothing about the server."""
    return frozenset({"/", *(PREFIX + name for name in names())})


def _file(name: str) -> Response:
    path = FOLDER / name
    return Response(_read(path), media_type=KINDS[path.suffix], headers={"content-security-policy": POLICY})


@functools.cache
def _read(path: Path) -> bytes:
    return path.read_bytes()
