"""The options of `llasm serve`: which model, where it listens, who may ask, and what bounds a request."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from llasm.errors import LlasmError
from llasm.options import check_numbers, option_parser, parse_options

KEY_VARIABLE = "LLASM_API_KEY"


@dataclass
class Settings:
    """One server: the web demo at `/` and OpenAI's API below `/v1`, in one process."""

    model: str | None = None
    """llasm-tiny (the default), a checkpoint's directory or a hub id; with `engine` the model's name at that server (by
    default the only one that it serves)."""
    name: str | None = None
    """What clients call the model; by default the last part of `model`, or of `hear`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: give an api_key then."""
    port: int = 7860
    """Port to listen on."""
    api_key: str | None = None
    """Asked of API and page alike. LLASM_API_KEY does the same, and does not show in the list of processes."""
    engine: str | None = None
    """An OpenAI-compatible server that answers in place of a model in this process, such as http://localhost:8000/v1;
    its key: OPENAI_API_KEY."""
    hear: str | None = None
    """With `engine`: the model that hears in this process, while the engine runs its LLM alone (`llasm export --format
    llm`) from prompt embeddings (vLLM, --enable-prompt-embeds). Without it the engine is sent the audio itself."""
    voice: str = "hibari"
    """Who speaks the answers: "engine" or "engine:voice"."""
    open: bool = False
    """Open the page in the browser."""
    max_batch: int = 16
    """Answers that are written at once; further requests wait."""
    max_waiting: int = 64
    """Requests that may wait; one more is told to come back later (429)."""
    timeout_s: float = 120.0
    """Seconds that a request may take, waiting included; then its answer ends as it is."""
    drain_s: float = 30.0
    """Seconds that running answers have to end after SIGTERM or Ctrl-C; a second signal ends them at once."""
    max_body_mb: float = 32.0
    """Megabytes of a request's body."""
    max_audio_seconds: float = 300.0
    """Seconds of audio in a request, all clips together."""
    max_new_tokens: int = 1024
    """The most tokens that a request may ask for."""
    fetch_audio: bool = False
    """Fetch the http(s) addresses of `audio_url` parts; never from private networks, and without redirects."""
    allow_hosts: str = ""
    """Further names under which a proxy reaches a server that listens on this machine alone, `a.example,b.example`."""
    log_content: bool = False
    """Log what is asked and answered; by default the log holds neither text nor audio."""

    def __post_init__(self) -> None:
        self.api_key = self.api_key or os.environ.get(KEY_VARIABLE) or None
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise LlasmError("api_key holds characters that no header carries; use printable ASCII")
        if not 0 <= self.port <= 65535:
            raise LlasmError(f"port is {self.port}; it must lie between 0 and 65535")
        if self.engine is not None:
            address = urlsplit(self.engine)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise LlasmError(f"engine is {self.engine!r}; it must look like http://localhost:8000/v1")
        elif self.hear is not None:
            raise LlasmError(f"hear is {self.hear!r}, but there is no engine; to answer here give it as model")
        check_numbers(self, "at least 1", "max_batch", "max_new_tokens")
        check_numbers(self, "at least 0", "max_waiting", "drain_s")
        check_numbers(self, "above 0", "timeout_s", "max_body_mb", "max_audio_seconds")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def host_names(self) -> frozenset[str] | None:
        """The names that a request may call the server by; None: any. A page elsewhere whose own name has been
        pointed at 127.0.0.1 (DNS rebinding) comes with another one."""
        further = [name.strip().lower() for name in self.allow_hosts.split(",") if name.strip()]
        if not self.on_loopback and not further:
            return None
        return frozenset(["localhost", "127.0.0.1", "::1", self.host.lower(), *further])


def load_settings(argv: list[str]) -> Settings:
    """`--key value …` → the settings; a wrong key or value is a LlasmError, --help prints every field."""
    parser = option_parser(Settings, "llasm serve", "The web demo at / and OpenAI's API below /v1, on one port.")
    return Settings(**parse_options(parser, argv, "serve"))
