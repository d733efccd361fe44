"""The caller's kept runs by their ids, for the surfaces that made them."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest

from tokenswift_jax.serve.channel import Channel
from tokenswift_jax.serve.openai import generation
from tokenswift_jax.serve.openai.errors import ApiError
from tokenswift_jax.serve.run_store import StoredRun, UnreadableError
from tokenswift_jax.serve.service import Service

_KINDS = {"runs": "run", "responses": "response"}  # the name of one by its surface


async def find_kept(request: HttpRequest, surface: str, run_id: str | None = None) -> tuple[StoredRun, Channel]:
    """The caller's run of an id, by default the one in the path, that a surface made.

    Raises:
      ApiError: there is none, or it cannot be read.
    """
    run_id = _id(request) if run_id is None else run_id
    try:
        return await _find(request, surface, run_id)
    except UnreadableError as error:
        kind = _KINDS[surface]
        message = f"the {kind} {run_id} cannot be read here: {error}; it can be deleted"
        raise ApiError(409, message, code=f"{kind}_unreadable") from None


async def delete_kept(request: HttpRequest, surface: str) -> str:
    """Ends the caller's run in the path, removes everything about it, and returns its id.

    Raises:
      ApiError: there is none.
    """
    service: Service = request.app.state.service
    run_id = _id(request)
    try:
        stored, _ = await _find(request, surface, run_id)
    except UnreadableError:
        await service.delete_unreadable(run_id)
    else:
        await service.delete(stored)
    return run_id


async def _find(request: HttpRequest, surface: str, run_id: str) -> tuple[StoredRun, Channel]:
    service: Service = request.app.state.service
    kind = _KINDS[surface]
    missing = ApiError(404, f"there is no {kind} {run_id[:64]!r}", code=f"{kind}_not_found")
    try:
        found = await service.find(run_id, generation.owner(request))
    except UnreadableError as error:
        if error.description.surface != surface:
            raise missing from None
        raise
    if found is None or found[0].details.get("surface") != surface:
        raise missing
    return found


def _id(request: HttpRequest) -> str:
    return str(request.path_params["id"])
