"""The page within the API's application, and what of it a client may reach.

Gradio serves more than this page needs (files by their path, other servers by their address, an editor of itself) and
takes what a body holds: the `path` of an input may be any file's, or an address to fetch. Here only the page's own
routes are there, values have the type of their input, and a file is one that was uploaded here.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from gradio_client.utils import strip_invalid_filename_characters
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from . import demo
from .errors import ApiError
from .guard import App, Message, Receive, Scope, Send
from .host import Host
from .schema import MAX_CLIPS

GRADIO = "/gradio_api"
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.+"
    rf"|{GRADIO}/(info|queue/data|startup-events|app_id|theme\.css)"
)
BEAT = re.compile(rf"{GRADIO}/heartbeat/([\w-]+)")  # the connection that an open page keeps
JOIN, RUN = f"{GRADIO}/queue/join", f"{GRADIO}/run/predict"  # events that wait for their turn, and that do not
CALL, UPLOAD = f"{GRADIO}/component_server", f"{GRADIO}/upload"
SENT = (JOIN, RUN, CALL, UPLOAD)
SESSION = re.compile(r"[\w-]{1,64}")
OF_EVENTS = ("index", "value", "previous_value", "selected")


def mount(api: FastAPI, host: Host, max_new_tokens: int, max_body_bytes: int) -> gr.routes.App:
    """Puts the page at `/`, behind a Gate; returns Gradio's own application."""
    blocks = demo.build(host, max_new_tokens)
    # Gradio keeps the paths of inputs within its folder of uploads only after `launch`, which is not used here.
    blocks.has_launched = True
    gr.mount_gradio_app(api, blocks, path="/", max_file_size=max_body_bytes, run_history=False, **demo.look())
    route = api.routes[-1]
    assert isinstance(route, Mount) and isinstance(route.app, gr.routes.App)
    page = route.app
    route.app = Gate(page, blocks, host)
    return page


class Gate:
    """Stands before Gradio's application."""

    def __init__(self, app: App, blocks: gr.Blocks, host: Host) -> None:
        self.app, self.blocks, self.sessions = app, blocks, host.sessions
        self._uploads: set[str] = set()  # paths that were given out and not used yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, method = scope["path"].rstrip("/") or "/", scope["method"]  # Gradio's script calls with and without
        if method in ("GET", "HEAD") and READ.fullmatch(path):
            await self.app(scope, receive, send)
        elif method == "GET" and (beat := BEAT.fullmatch(path)):
            with self.sessions.present(beat[1]):
                await self.app(scope, receive, send)
        elif method == "POST" and path in SENT:
            await self._sent(path, scope, receive, send)
        elif READ.fullmatch(path) or BEAT.fullmatch(path) or path in SENT:
            await ApiError(f"{method} is not for this address", 405).response()(scope, receive, send)
        else:
            refusal = ApiError(f"there is no {path:.100}", 404, code="unknown_url")
            await refusal.response()(scope, receive, send)

    async def _sent(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """What comes with a body."""
        try:
            request = Request(scope, receive)
            answer = await self._upload(request) if path == UPLOAD else None
            body = b"" if answer else json.dumps(self._checked(path, await _json(request))).encode()
        except HTTPException as error:
            answer = ApiError(str(error.detail), error.status_code).response()
        except ApiError as error:
            answer = error.response()
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await self.app(_with_length(scope, len(body)), _first(body, receive), send)

    # ---- bodies

    def _checked(self, path: str, body: Any) -> dict[str, Any]:
        """A body with what the page sends, and nothing else."""
        if not isinstance(body, dict):
            raise ApiError("the body must be a JSON object")
        session = body.get("session_hash")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise ApiError("session_hash must be 1 to 64 letters or digits", param="session_hash")
        return self._call(body, session) if path == CALL else self._event(path, body, session)

    def _call(self, body: dict[str, Any], session: str) -> dict[str, Any]:
        """Of a function that the page's script calls; it learns the session too."""
        component, name, data = (body.get(key) for key in ("component_id", "fn_name", "data"))
        block = self.blocks.blocks.get(component) if isinstance(component, int) else None
        if not isinstance(name, str) or not getattr(getattr(block, name, None), "_is_server_fn", False):
            raise ApiError("there is no such function", 404, "fn_name")
        if not isinstance(data, dict):
            raise ApiError("data must be a JSON object", param="data")
        data = {**data, "session": session}
        return {"component_id": component, "fn_name": name, "session_hash": session, "data": data}

    def _event(self, path: str, body: dict[str, Any], session: str) -> dict[str, Any]:
        number, trigger, event = (body.get(key) for key in ("fn_index", "trigger_id", "event_data"))
        fn = self.blocks.fns.get(number) if isinstance(number, int) else None
        if fn is None or fn.fn is None or (path == JOIN) == (fn.queue is False):
            raise ApiError("there is no such event", 404, "fn_index")
        if fn.collects_event_data:
            index = event.get("index") if isinstance(event, dict) else None
            index = index[0] if isinstance(index, list) and index else index
            if not _whole(index) or not isinstance(event, dict) or "value" not in event:
                raise ApiError("event_data must hold index and value", param="event_data")
        values = body.get("data")
        if not isinstance(values, list) or (fn.inputs and len(values) != len(fn.inputs)):
            raise ApiError(f"data must be a list of {len(fn.inputs)} values", param="data")
        values = [self._value(block, value) for block, value in zip(fn.inputs, values, strict=False)]
        return {
            "fn_index": number,
            "session_hash": session,
            "data": values,
            "trigger_id": trigger if _whole(trigger) else None,
            "event_data": {key: event[key] for key in OF_EVENTS if key in event} if isinstance(event, dict) else None,
        }

    def _value(self, block: Any, value: Any) -> Any:
        if isinstance(block, gr.MultimodalTextbox):
            return self._message(value)
        if isinstance(block, gr.Checkbox):
            fits = isinstance(value, bool)
        elif isinstance(block, gr.Slider):
            fits = isinstance(value, (int, float)) and math.isfinite(value) and block.minimum <= value <= block.maximum
        elif isinstance(block, gr.Dropdown):
            fits = value in [choice for _, choice in block.choices]
        else:
            value = "" if value is None else value
            fits = isinstance(value, str)
        if not fits:
            raise ApiError(f"{block.label}: {value!r:.80} is none of its values", param="data")
        return value

    def _message(self, value: Any) -> dict[str, Any]:
        """Text and uploads of the box."""
        value = value or {}
        text, files = (value.get("text") or "", value.get("files") or []) if isinstance(value, dict) else (None, None)
        if not isinstance(text, str) or not isinstance(files, list) or len(files) > MAX_CLIPS:
            raise ApiError(f"a message is a text and at most {MAX_CLIPS} files", param="data")
        paths = [file.get("path") if isinstance(file, dict) else None for file in files]
        if not all(isinstance(path, str) and path in self._uploads and Path(path).is_file() for path in paths):
            raise ApiError("a file was not uploaded here, or was asked about before; please add it again", param="data")
        self._uploads.difference_update(paths)  # each is asked about once: then it is gone
        return {"text": text, "files": [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]}

    # ---- uploads

    async def _upload(self, request: Request) -> Response:
        """Keeps the files, each in a folder of its own (Gradio's would be named by its content, so that two who add
        the same recording share it); returns their paths."""
        async with request.form(max_files=MAX_CLIPS, max_fields=MAX_CLIPS) as form:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            paths = [await asyncio.to_thread(_kept, file) for file in files]
        if not paths:
            raise ApiError("the upload holds no files", param="files")
        self._uploads = {path for path in self._uploads if Path(path).is_file()} | set(paths)
        self.blocks.upload_file_set.update(paths)  # Gradio deletes what is not asked about (delete_cache)
        return JSONResponse(paths)


def _kept(file: UploadFile) -> str:
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    name = strip_invalid_filename_characters(Path(file.filename or "").name).strip(". ")
    path = folder / (name or "recording")
    with path.open("wb") as kept:
        shutil.copyfileobj(file.file, kept)
    return str(path)


async def _json(request: Request) -> Any:
    content = await request.body()
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise ApiError("the body is not JSON") from None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _with_length(scope: Scope, length: int) -> Scope:
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"], headers["content-type"] = str(length), "application/json"
    return {**scope, "headers": headers.raw}


def _first(body: bytes, receive: Receive) -> Receive:
    """The body, then what else comes from the client: its leaving."""
    bodies = iter([body])

    async def replay() -> Message:
        content = next(bodies, None)
        return await receive() if content is None else {"type": "http.request", "body": content, "more_body": False}

    return replay
