"""Who may ask `llasm serve`, and what it may fetch: the key, other sites, the size of a body, private addresses."""

from __future__ import annotations

import asyncio

import pytest
from serve_fakes import (
    CHAT,
    HERE,
    ask,
    client_of,
    linked,
)

from llasm.serve import fetch

# ---- the guard

KEY = "correct-horse"


def test_the_key_guards_everything(engine):
    with client_of(engine, api_key=KEY, page=True) as client:
        for path in ("/", "/v1/models", "/metrics", "/docs", "/openapi.json", "/gradio_api/info", "/config"):
            answer = client.get(path)
            assert answer.status_code == 401 and "key" in answer.json()["error"]["message"], path
        for wrong in ("Bearer wrong", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"):
            assert client.get("/v1/models", headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
        assert client.get("/health").status_code == 200
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=bearer).status_code == 200
        assert client.get("/", headers=bearer).status_code == 200
        assert "HTTPBearer" in client.get("/openapi.json", headers=bearer).json()["components"]["securitySchemes"]


def test_the_page_has_a_login_form_and_a_cookie_that_is_not_the_key(engine):
    with client_of(engine, api_key=KEY, page=True) as client:
        page = {"Accept": "text/html"}
        answer = client.get("/", headers=page)
        assert answer.status_code == 401 and '<form method="post" action="/login">' in answer.text
        assert client.post("/login", data={"key": "wrong"}).status_code == 401 and not client.cookies
        answer = client.post("/login", data={"key": KEY}, follow_redirects=False)
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and KEY not in cookie
        assert client.get("/", headers=page).status_code == 200 and client.get("/config").status_code == 200
        client.cookies.clear()
        client.cookies.set("llasm_session", "0" * 64)
        assert client.get("/", headers=page).status_code == 401


def test_no_other_site_gets_in(client):
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/v1/models", headers={"Host": "[::1]:7860"}).status_code == 200
    evil = {"Origin": "https://evil.example"}
    for headers in (evil, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post(CHAT, json=ask("hi"), headers=headers).status_code == 403
    assert client.post(CHAT, json=ask("hi"), headers={"Origin": HERE}).status_code == 200
    answers = [client.get("/v1/models", headers=evil), client.options(CHAT, headers=evil)]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_the_page_grants_no_other_site_access(engine):
    with client_of(engine, page=True, host="0.0.0.0", api_key="k") as client:
        headers = {"Origin": "https://evil.example", "Authorization": "Bearer k", "Host": "public.example"}
        answer = client.get("/config", headers=headers)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
        for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd"):
            assert client.get(path, headers=headers).status_code in (403, 404)


def test_a_body_is_counted_while_it_is_read(client):
    def pieces():  # without a Content-Length
        for _ in range(20):
            yield b"x" * 100_000

    for content in (b"x" * 2_000_000, pieces()):
        answer = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "larger than 1 MB" in answer.json()["error"]["message"]
    big = {"file": b"x" * 2_000_000}
    assert client.post("/v1/audio/transcriptions", data={"model": "fake"}, files=big).status_code == 413


# ---- addresses


@pytest.mark.parametrize(
    "address, public",
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        *[(address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")],
        *[(address, False) for address in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1")],
        *[(address, False) for address in ("::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1")],
        *[(address, False) for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "not an address")],
    ],
)
def test_only_public_addresses(address, public):
    assert fetch.is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.wav",
        "http://localhost/a.wav",
        "http://[::1]/a.wav",
        "http://2130706433/a.wav",
        "http://0x7f.1/a.wav",
        "http://169.254.169.254/latest/meta-data",
        "http://user:secret@example.org/a.wav",
        "http:///a.wav",
        "http://[/a.wav",
        "http://example.org:99999/a.wav",
        "HTTP://LOCALHOST/a.wav",
    ],
)
def test_private_addresses_are_not_fetched_even_where_fetching_is_allowed(engine, url):
    with client_of(engine, fetch_audio=True) as client:
        answer = client.post(CHAT, json=ask(linked(url)))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "bad_url" and not engine.asked


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    class Loop:
        async def getaddrinfo(self, host, port, type):
            return [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(fetch.asyncio, "get_running_loop", Loop)
    assert asyncio.run(fetch._public_address("rebinding.example", 80)) is None


def test_what_is_fetched_comes_from_the_checked_address_without_redirects(monkeypatch):
    seen = []

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        if "/moved" in head:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://localhost/x\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsound")
        await writer.drain()
        writer.close()

    async def fetched():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def address(host, port):
            assert host == "example.org"
            return "127.0.0.1"

        monkeypatch.setattr(fetch, "_public_address", address)
        url = f"http://example.org:{port}"
        assert await fetch._fetch(url + "/a.wav", "url", 100) == b"sound"
        for bad, limit, reason in (("/moved", 100, "redirects are not followed"), ("/a.wav", 4, "is larger than")):
            with pytest.raises(fetch.ApiError, match=reason):
                await fetch._fetch(url + bad, "url", limit)
        server.close()
        assert f"Host: example.org:{port}" in seen[0]

    asyncio.run(fetched())


@pytest.mark.parametrize("others", ['foo={"a":1}', "x[1]=2", "a@b=1", "bad name=1", "é=1", "; ;", 'q="', "llasm"])
def test_the_login_lasts_beside_the_cookies_of_other_servers(engine, others):
    with client_of(engine, api_key=KEY) as client:
        own = client.post("/login", data={"key": KEY}, follow_redirects=False).headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        for cookie in (f"{others}; {own}", f"{own}; {others}"):
            headers = {"Cookie": cookie.encode("utf-8")}
            assert client.get("/v1/models", headers=headers).status_code == 200, cookie
        assert client.get("/v1/models", headers={"Cookie": others.encode()}).status_code == 401
