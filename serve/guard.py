"""What stands before page and API alike, as plain ASGI: the host's name, foreign pages, the key, the body's size.

The key comes as `Authorization: Bearer KEY`, or in a cookie that the login form sets (a keyed hash of it, so that the
cookie does not give the key away). Keys are compared in constant time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response

from .errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "llasm_session"
COOKIE_SECONDS = 30 * 24 * 3600
OPEN_PATHS = ("/health",)  # what a load balancer asks; it says nothing of anybody's
LOGIN_BYTES = 4_096
WRONG_KEY_S = 0.5  # so that guessing takes its time
BODY_SECONDS = 60.0  # between two pieces of a body
# Scripts and styles in the page's own text, Gradio's templates (eval), sound and worklets made by the page's script;
# nothing from elsewhere, so that no text in a conversation has the browser fetch from there.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


class Guard:
    """Wraps the whole application."""

    def __init__(self, app: App, api_key: str | None, host_names: frozenset[str] | None, max_body_bytes: int) -> None:
        self.app, self.host_names, self.max_body_bytes = app, host_names, max_body_bytes
        self._key = api_key.encode() if api_key else None
        self._cookie = hmac.new(self._key, b"llasm page", hashlib.sha256).hexdigest() if self._key else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["type"] == "websocket":  # nothing here speaks it; the page uses plain HTTP
            if refusal is not None:
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, self.max_body_bytes)
        if refusal is None and body.announced > self.max_body_bytes:
            refusal = body.too_large().response()
        if refusal is None and self._key and scope["path"] == "/login":
            refusal = await self._login(scope, body.receive)
        if refusal is not None:
            await refusal(scope, receive, _hardened(send))
            return
        await self.app(scope, body.receive, _hardened(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self.host_names is not None and _name(headers.get("host", "")) not in self.host_names:
            return ApiError(
                f"this server is not called {headers.get('host', '')!r:.100}; see its option allow_hosts",
                421,
                code="wrong_host",
            ).response()
        if scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if (origin is not None and not self._own(origin, headers)) or headers.get("sec-fetch-site") == "cross-site":
                return ApiError("a page of another site may not ask this server", 403, code="cross_site").response()
        if self._key is None or scope["path"] in OPEN_PATHS or scope["path"] == "/login" or self._known(headers):
            return None
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return _login_page(401)
        return ApiError(
            "wrong or missing key; send it as Authorization: Bearer KEY",
            401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        ).response()

    def _own(self, origin: str, headers: Headers) -> bool:
        """Whether a page of that origin is this server's, perhaps under the name that a proxy gives it."""
        place = origin.partition("://")[2].lower()
        return place == headers.get("host", "").lower() or _name(place) in (self.host_names or ())

    def _known(self, headers: Headers) -> bool:
        assert self._key is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._key)
        # Browsers send what every server of this host has set, be it a cookie by the standard or not.
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return hmac.compare_digest(cookie.encode("utf-8", "replace"), self._cookie.encode())

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] in ("GET", "HEAD"):
            return _login_page(200)
        if scope["method"] != "POST":
            return ApiError("use GET or POST", 405, headers={"Allow": "GET, HEAD, POST"}).response()
        form = bytearray()
        more = True
        while more and len(form) <= LOGIN_BYTES:
            try:
                message = await receive()
            except HTTPException as error:
                return ApiError(error.detail, error.status_code).response()
            form += message.get("body", b"")
            more = message.get("more_body", False)
        fields = (
            parse_qs(form[:LOGIN_BYTES].decode("utf-8", "replace"), max_num_fields=4) if form.count(b"&") < 4 else {}
        )
        given = fields.get("key", [""])[0].strip().encode()
        assert self._key is not None
        if not hmac.compare_digest(given, self._key):
            await asyncio.sleep(WRONG_KEY_S)
            return _login_page(401, "That is not the key.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            self._cookie,
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="strict",
            secure=scope.get("scheme") == "https",
        )
        return answer


class _Body:
    """Counts what comes in, and does not wait for ever."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        length = Headers(scope=scope).get("content-length", "")
        self.announced = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
        self._n_bytes, self._whole = 0, False

    async def receive(self) -> Message:
        if self._whole:  # now only the client's leaving can come
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body did not arrive: nothing for {BODY_SECONDS:.0f} s") from None
        self._n_bytes += len(message.get("body", b""))
        if self._n_bytes > self._limit:
            raise HTTPException(413, self.too_large().message)
        self._whole = not message.get("more_body", False)
        return message

    def too_large(self) -> ApiError:
        return ApiError(f"the body is larger than {self._limit / 1e6:g} MB", 413, code="body_too_large")


def _hardened(send: Send) -> Send:
    """No other site may read an answer, frame the page, be fetched from by it, or have a type guessed."""

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers["X-Content-Type-Options"] = "nosniff"
            headers["X-Frame-Options"] = "SAMEORIGIN"
            headers["Referrer-Policy"] = "same-origin"
            headers["Content-Security-Policy"] = POLICY
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_on


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _login_page(status: int, note: str = "") -> Response:
    return HTMLResponse(_PAGE.replace("NOTE", html.escape(note)), status, {"Cache-Control": "no-store"})


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>llasm · key</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { display: grid; place-items: center; min-height: 100vh; margin: 0; background: light-dark(#faf9f7, #1c1917); }
form { display: grid; gap: .75rem; width: min(20rem, 90vw); }
h1 { font-size: 1.25rem; margin: 0; }
input, button { font: inherit; padding: .6rem .8rem; border-radius: .6rem; border: 1px solid #a8a29e; }
button { background: #0f766e; color: #fff; border: 0; cursor: pointer; }
p { color: light-dark(#b91c1c, #fca5a5); margin: 0; min-height: 1.5em; }
</style></head><body><form method="post" action="/login">
<h1>This chat asks for a key</h1>
<input name="key" type="password" aria-label="Key" autocomplete="current-password" required autofocus>
<button>Enter</button><p role="alert">NOTE</p>
</form></body></html>
"""
