"""A client's audio → waves, within bounds. What a client sends is never opened as a path.

An address is fetched only if the server allows it: from public addresses alone, each checked before the connection is
made to that very address (a name that resolves anew in between leads nowhere else), without redirects.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from llasm import audio
from llasm.errors import LlasmError

from .errors import ApiError

FETCH_SECONDS = 20.0
DECODERS = 2  # at once: each may hold some hundred megabytes
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Listener:
    """Decodes the audio of requests; `max_seconds` bounds a request's clips together, `max_bytes` what is fetched."""

    def __init__(self, max_seconds: float, max_bytes: int, may_fetch: bool) -> None:
        self.max_seconds, self.max_bytes, self.may_fetch = max_seconds, max_bytes, may_fetch
        self._decoders = asyncio.Semaphore(DECODERS)

    async def decode(self, content: bytes, param: str, left_seconds: float) -> audio.Wave:
        """A file's bytes as float32 [n_samples] at 16 kHz; ApiError for no audio, or more than what is left."""
        async with self._decoders:
            try:
                return await asyncio.to_thread(audio.decode, content, param, left_seconds)
            except audio.TooLong as error:
                limit = f"this server listens to {self.max_seconds:g} s a request"
                raise ApiError(f"{error}; {limit}", 413, param, "audio_too_long") from error
            except LlasmError as error:
                raise ApiError(str(error), 400, param, "invalid_audio") from error

    async def url_bytes(self, url: str, param: str) -> bytes:
        """The content of a `data:` URI, or of an http(s) address where that is allowed."""
        if url[:5].lower() == "data:":
            try:
                return await asyncio.to_thread(audio.data_uri_bytes, url, param)
            except LlasmError as error:
                raise ApiError(str(error), 400, param, "invalid_audio") from error
        if not re.match(r"https?://", url, re.IGNORECASE):
            raise ApiError(
                f"{param}: is no data: URI; send the audio as data:audio/wav;base64,…", 400, param, "bad_url"
            )
        if not self.may_fetch:
            raise ApiError(
                f"{param}: this server fetches no addresses; send the audio as data:audio/wav;base64,…",
                400,
                param,
                "fetch_not_allowed",
            )
        try:
            return await asyncio.wait_for(_fetch(url, param, self.max_bytes), FETCH_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(f"{param}: did not arrive within {FETCH_SECONDS:.0f} s", 400, param, "bad_url") from None


def base64_bytes(text: str, param: str) -> bytes:
    """A base64 string's content."""
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{param}: bad base64 ({error})", 400, param, "invalid_audio") from error


async def _fetch(url: str, param: str, max_bytes: int) -> bytes:
    import httpx

    def refuse(reason: str) -> ApiError:
        return ApiError(f"{param}: {reason}", 400, param, "bad_url")

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise refuse("is no address") from None
    if not host or parts.username is not None or not url.isascii() or not url.isprintable():
        raise refuse("must look like https://example.org/question.wav")
    port = port or (443 if parts.scheme.lower() == "https" else 80)
    address = await _public_address(host, port)
    if address is None:
        raise refuse("is no public address that can be reached")
    literal = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
    # The name is still the one that the certificate must hold and that the server is asked for.
    headers = {"Host": parts.netloc, "Accept": "audio/*", "Accept-Encoding": "identity"}
    content = bytearray()
    try:
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=FETCH_SECONDS) as client,
            client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as answer,
        ):
            if answer.status_code != 200:
                raise refuse(f"answers with status {answer.status_code}, not 200; redirects are not followed")
            async for piece in answer.aiter_raw():
                content += piece
                if len(content) > max_bytes:
                    raise refuse(f"is larger than {max_bytes / 1e6:g} MB")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise refuse(f"could not be fetched ({type(error).__name__})") from error
    return bytes(content)


async def _public_address(host: str, port: int) -> str | None:
    """One address of the host; None unless every one that it has is public."""
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    addresses = [str(place[4][0]) for place in found]
    return addresses[0] if addresses and all(map(is_public, addresses)) else None


def is_public(address: str) -> bool:
    """Whether an address, or the IPv4 address inside it, belongs to the public internet."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
