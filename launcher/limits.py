"""How often one client may ask for pictures where everybody can, on a Space, and how much a request may send. What one
picture may be is checked where its request and config are made, how many may wait in client.py.
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from launcher.schema import Refused

PICTURES = 15  # five comparisons
PERIOD_S = 60.0
BODY_BYTES = 4 * 2**20  # of a request to the page's server: the beginning of a dropped picture is the largest

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Rate:
    """Counts pictures by client over the last `period` seconds. Thread-safe; forgets who has been quiet that long."""

    def __init__(
        self,
        limit: int | None = PICTURES,  # None: no limit
        period: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._period, self._clock = limit, period, clock
        self._asked: dict[str, deque[float]] = {}
        self._swept = clock()
        self._lock = threading.Lock()

    @classmethod
    def here(cls, env: Mapping[str, str] = os.environ) -> Rate:
        """The limit of this machine: guests have one, who runs it at home has none."""
        return cls() if env.get("SPACE_ID") else cls(limit=None)

    def take(self, who: str, count: int) -> None:
        """`who` asks for `count` pictures. Raises Refused if those are too many."""
        if self._limit is None:
            return
        with self._lock:
            now = self._clock()
            self._sweep(now)
            asked = self._asked.setdefault(who, deque())
            self._forget(asked, now)
            if len(asked) + count > self._limit:
                free = asked[len(asked) + count - self._limit - 1] + self._period
                raise Refused(
                    f"You asked for {len(asked)} pictures within {self._period:.0f} s and the limit is {self._limit}; "
                    f"try again in {free - now:.0f} s"
                )
            asked.extend([now] * count)

    def _forget(self, asked: deque[float], now: float) -> None:
        while asked and asked[0] <= now - self._period:
            asked.popleft()

    def _sweep(self, now: float) -> None:
        if now - self._swept < self._period:
            return
        self._swept = now
        for who in list(self._asked):
            self._forget(self._asked[who], now)
            if not self._asked[who]:
                del self._asked[who]


class SmallBodies:
    """ASGI middleware: a request whose body is larger than `limit` bytes is refused, and never held in memory."""

    def __init__(self, app: App, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif int(dict(scope["headers"]).get(b"content-length", b"0")) > self._limit:
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": b"requests are up to %d bytes\n" % self._limit})
        else:
            await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        got = 0

        async def counted() -> dict[str, Any]:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            return message if got <= self._limit else {"type": "http.disconnect"}  # of whom said no length

        return counted


def address(peer: str, forwarded: str) -> str:
    """Who asks: the first address of an X-Forwarded-For header, which a Space's proxy sets, else the connection's.

    Of an IPv6 address the first half, which is one household's; the rest changes by itself.
    """
    word = forwarded.split(",")[0].strip() or peer
    try:
        found = ipaddress.ip_address(word)
    except ValueError:
        return peer
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
