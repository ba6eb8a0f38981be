"""The open tabs of the web demo: each has a conversation, which ends a while after the tab was seen last."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .conversation import Conversation
from .turns import Microphone

MAX_SESSIONS = 1_000  # open tabs; beyond it the one that has rested longest is forgotten
GRACE_S = 600.0  # that a tab may be out of reach: a phone that slept, a network that changed


@dataclass
class Tab:
    """One open page."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """What the tab's own script names the conversation by."""
    talk: Conversation = field(default_factory=Conversation)
    microphone: Microphone | None = None
    used: float = field(default_factory=time.monotonic)
    ending: asyncio.TimerHandle | None = None
    """Set while the page's connection is gone."""


class Sessions:
    """The tabs: by Gradio's session, and by the token that the tab's own script holds."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._tabs: OrderedDict[str, Tab] = OrderedDict()
        self._present: Counter[str] = Counter()  # connections that a page keeps open while it is there

    def open(self, session: str) -> Tab:
        """A new tab in place of the session's earlier one."""
        self.close(session)
        tab = self._tabs[session] = Tab()
        while len(self._tabs) > MAX_SESSIONS:
            self.close(next(iter(self._tabs)))
        return tab

    def resume(self, session: str, token: str) -> Tab | None:
        """Moves the tab of that token to the session of a page that was loaded anew; None where there is none."""
        before = self._named(token)
        if before is None:
            return None
        tab = self._tabs.pop(before)
        if tab.ending is not None:
            tab.ending.cancel()
        self.close(session)
        self._tabs[session], tab.ending = tab, None
        return self.of(session)

    def close(self, session: str) -> None:
        tab = self._tabs.pop(session, None)
        if tab is not None:
            tab.talk.clear()
            if tab.ending is not None:
                tab.ending.cancel()

    def end(self) -> None:
        """Of all tabs, with the server."""
        for session in list(self._tabs):
            self.close(session)

    def of(self, session: str) -> Tab | None:
        """None where there is no such tab: it was away for too long, or the server has been started anew."""
        tab = self._tabs.get(session)
        if tab is not None:
            tab.used = time.monotonic()
            self._tabs.move_to_end(session)
        return tab

    def by_token(self, token: Any) -> Tab | None:
        """As `of`, by what the tab's own script holds."""
        session = self._named(token)
        return None if session is None else self.of(session)

    def _named(self, token: Any) -> str | None:
        return next((session for session, tab in self._tabs.items() if _equal(tab.token, token)), None)

    @contextmanager
    def present(self, session: str) -> Iterator[None]:
        """While the page keeps its connection; `grace_s` after the last of them, and of its use, the tab ends."""
        self._present[session] += 1
        try:
            yield
        finally:
            self._present[session] -= 1
            if not self._present[session]:
                del self._present[session]
                self._end_later(session, self.grace_s)

    def _end_later(self, session: str, seconds: float) -> None:
        tab = self._tabs.get(session)
        if tab is not None:
            if tab.ending is not None:
                tab.ending.cancel()
            tab.ending = asyncio.get_running_loop().call_later(seconds, self._end, session)

    def _end(self, session: str) -> None:
        tab = self._tabs[session]
        tab.ending = None
        rest = tab.used + self.grace_s - time.monotonic()
        if session in self._present:
            return
        if rest > 0:
            self._end_later(session, rest)
        else:
            self.close(session)


def _equal(own: str, given: Any) -> bool:
    return isinstance(given, str) and secrets.compare_digest(own.encode(), given.encode("utf-8", "replace"))
