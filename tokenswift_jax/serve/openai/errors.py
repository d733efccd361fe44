"""Errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.responses import JSONResponse

from tokenswift_jax.cli.command import in_flags
from tokenswift_jax.errors import UserError
from tokenswift_jax.serve.busy import BusyError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


class ApiError(Exception):
    """An answer that is no success.

    Attributes:
      status: HTTP's status.
      message: one line for a person.
      param: the field that caused it.
      code: OpenAI's code for it, if it has one.
      retry_after: seconds after which it is worth another try; None: it is not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The object that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer; stock clients try again only where `retry_after` says so."""
        headers = {"x-should-retry": "false"}
        if self.retry_after is not None:
            headers = {"x-should-retry": "true", "retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be served as it is."""
    return ApiError(400, message, param, code)


def from_user_error(error: UserError, names: Mapping[str, str]) -> ApiError:
    """The answer for an error of the library; `names` gives the field for each Python argument."""
    param = next((names.get(name, name) for name in error.arguments), None)
    code = "context_length_exceeded" if "longest text" in str(error) else None
    return bad(in_flags(error, names), param, code)


def from_busy(error: BusyError) -> ApiError:
    """The answer of a server whose queue is full, or that takes no runs now."""
    if error.unavailable:
        return ApiError(503, str(error), retry_after=error.retry_after)
    return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)


@contextmanager
def translated(names: Mapping[str, str]) -> Iterator[None]:
    """Turns the errors of the library and of the scheduler into answers; `names` as for `from_user_error`."""
    try:
        yield
    except UserError as error:
        raise from_user_error(error, names) from None
    except BusyError as error:
        raise from_busy(error) from None
