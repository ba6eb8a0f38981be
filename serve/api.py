"""The HTTP API: OpenAI's shapes below `/v1`, with `/health`, `/metrics` and its description at `/docs`.

    application(engine, speaker, settings)  →  an ASGI application, guarded

Every error is OpenAI's object, {"error": {message, type, param, code}}; the inside shows in the log alone.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llasm.errors import LlasmError

from . import chat_api, speech_api
from .engine import Engine
from .errors import ApiError, EngineFailed, api_error
from .guard import App, Guard
from .metrics import Observed
from .schema import Health, Model, Models
from .serving import ERRORS, Serving
from .settings import Settings
from .speech import Speaker

LOG = logging.getLogger("llasm.serve")
METHODS = {
    "/v1/chat/completions": "POST",
    "/v1/audio/transcriptions": "POST",
    "/v1/audio/speech": "POST",
    "/v1/models": "GET",
}


def application(engine: Engine, speaker: Speaker, settings: Settings, page: bool = False) -> tuple[App, Serving]:
    """The API, with `page` also the web demo, behind the guard."""
    serving = Serving(engine, speaker, settings)
    api = routes(serving)
    if page:
        from . import gate
        from .host import Host

        host = Host(serving.newcomers, speaker, settings.max_audio_seconds)
        mounted = gate.mount(api, host, settings.max_new_tokens, settings.max_body_bytes)
        _errors(mounted)
        serving.page_ends = [mounted.stop_event.set, host.sessions.end]
    app: App = Guard(api, settings.api_key, settings.host_names, settings.max_body_bytes)
    return Observed(app, serving.metrics, settings.max_batch + settings.max_waiting), serving


def routes(serving: Serving) -> FastAPI:
    """The API alone, unguarded."""
    app = FastAPIOffline(  # /docs without anything from elsewhere
        title="llasm",
        description="Speech and text in, text and speech out: OpenAI's API over one model.",
        version="1",
        redoc_url=None,
        redirect_slashes=False,
        # Only said in the description: the guard checks it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if serving.settings.api_key else [],
    )
    _errors(app)
    _small(app, serving)
    app.include_router(chat_api.router(serving))
    app.include_router(speech_api.router(serving))

    @app.api_route(
        "/v1/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"], include_in_schema=False
    )
    async def unknown(rest: str, request: Request) -> Response:
        allowed = METHODS.get(f"/v1/{rest}")
        if allowed:
            raise ApiError(f"use {allowed} here, not {request.method}", 405, headers={"Allow": allowed})
        raise ApiError(f"there is no /v1/{rest:.100}; /docs lists what there is", 404, code="unknown_url")

    return app


def _small(app: FastAPI, serving: Serving) -> None:
    """Models, health and metrics."""

    def model() -> Model:
        return Model(id=serving.engine.name, created=serving.started)

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> Models:
        """The one model that answers here."""
        return Models(data=[model()])

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def one_model(name: str) -> Model:
        """Whether a model of that name answers here."""
        serving.check_model(name)
        return model()

    @app.get("/health", response_model=Health, responses={503: {"model": Health}, "4XX": ERRORS["4XX"]})
    async def health() -> Response:
        """200 while requests are taken, 503 once the server is shutting down."""
        running, waiting = serving.engine.load()
        found = Health(status="draining" if serving.draining else "ok", running=running, waiting=waiting)
        return JSONResponse(found.model_dump(), 503 if serving.draining else 200)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **ERRORS})
    async def metrics() -> Response:
        """Counters in Prometheus' format."""
        return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        found = api_error(error)
        if found.status == 500:
            LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return found.response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return ApiError(str(error.detail), error.status_code, headers=dict(error.headers or {})).response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response()

    for kind in (ApiError, LlasmError, EngineFailed, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _invalid(error: RequestValidationError) -> ApiError:
    """The fault that lies deepest in the request, and is of a value rather than a type: of the branches of a union that
    is in the one that was meant."""
    fault = max(error.errors(), key=lambda fault: (len(fault["loc"]), not str(fault["type"]).endswith("_type")))
    if fault["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {fault['ctx']['error']} at character {fault['loc'][-1]}")
    param = _field(fault["loc"][1:], error.body)
    if not param:
        return ApiError("the body must be a JSON object, sent with Content-Type: application/json")
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = fault.get("input")
    if isinstance(given, (str, int, float)) and fault["type"] not in ("missing", "value_error"):
        message += f", not {given!r:.40}"
    return ApiError(f"{param}: {message}", 400, param, str(fault["type"]))


def _field(location: tuple[Any, ...], body: Any) -> str:
    """pydantic's location as messages[0].content[1]: without the names of the branches that it tried."""
    name = ""
    for i, step in enumerate(location):
        last = i == len(location) - 1
        if isinstance(step, int) and isinstance(body, list) and step < len(body):
            name, body = f"{name}[{step}]", body[step]
        elif isinstance(step, str) and ((step in body or last) if isinstance(body, dict) else not name):
            name = f"{name}.{step}" if name else step
            body = body.get(step) if isinstance(body, dict) else None
    return name
