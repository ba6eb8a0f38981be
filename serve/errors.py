"""What a client is told when something is wrong: a status and OpenAI's error object."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from llasm.errors import LlasmError

from .engine import Busy, Draining, TimedOut

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Anything that a request can be refused for; `param` names the field, as in messages[0].content[1]."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # ASCII: half a surrogate pair, quoted from a request, has no UTF-8.
        content = json.dumps(self.body()).encode("ascii")
        return Response(content, self.status, self.headers, "application/json")


class EngineFailed(Exception):
    """The server behind `--engine` could not be reached, or broke off; the message says so, and no more."""


def api_error(error: BaseException) -> ApiError:
    """What of an error a client may know."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        wait = str(max(1, round(error.retry_after_s)))
        return ApiError(str(error), 429, code="busy", headers={"Retry-After": wait})
    if isinstance(error, Draining):
        return ApiError(str(error), 503, code="draining", headers={"Retry-After": "10", "Connection": "close"})
    if isinstance(error, TimedOut):
        return ApiError(str(error), 408, code="timeout")
    if isinstance(error, LlasmError):
        return ApiError(str(error))
    if isinstance(error, EngineFailed):
        return ApiError(str(error), 502, code="engine_failed")
    return ApiError("the server could not answer; its log says why", 500, code="internal_error")
