"""The dictionary over which nodes find each other, served by node 0's agent on a socket in its run directory. What
torch writes there is its own business; node_store.py is the other end.
"""

from __future__ import annotations

import base64
import socket
import threading
import time
from pathlib import Path
from typing import Any

from launcher import wire

WAIT_S = 0.5  # an answer takes no longer: "not yet" is one, so that a connection serves several threads
KEYS, BYTES = 100_000, 32 * 1024  # in all; of one value


class Stored:
    """The dictionary. Every method is one request; the last word of each is what goes back."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def handle(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says. Raises ValueError if it makes no sense."""
        do, keys = frame.get("do"), frame.get("keys", [])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("keys are texts")
        with self._changed:
            if do in ("set", "compare_set", "add", "append"):
                if len(keys) != 1 or len(self._values) >= KEYS:
                    raise ValueError(f"one key at a time, {KEYS} in all")
                answer = getattr(self, f"_{do}")(keys[0], frame)
                self._changed.notify_all()
                return {"value": answer}
            if do == "wait":
                end = time.monotonic() + WAIT_S
                while missing := [key for key in keys if key not in self._values]:
                    if not self._changed.wait(end - time.monotonic()):
                        break
                return {"value": missing}
            if do == "get":
                return {"value": [_text(self._values[key]) if key in self._values else None for key in keys]}
            if do == "delete":
                return {"value": [self._values.pop(key, None) is not None for key in keys]}
            if do == "count":
                return {"value": len(self._values)}
            if do == "keep":
                return {"value": self._keep(*keys)}
        raise ValueError(f"unknown request {do!r:.40}")

    def _set(self, key: str, frame: dict[str, Any]) -> str:
        self._values[key] = _bytes(frame.get("value"))
        return ""

    def _compare_set(self, key: str, frame: dict[str, Any]) -> str:
        expected, desired = _bytes(frame.get("expected")), _bytes(frame.get("value"))
        if self._values.get(key, b"") == expected:
            self._values[key] = desired
        return _text(self._values.get(key, expected))

    def _add(self, key: str, frame: dict[str, Any]) -> int:
        amount = frame.get("amount")
        if not isinstance(amount, int):
            raise ValueError("amount is not a number")
        total = int(self._values.get(key, b"0")) + amount
        self._values[key] = str(total).encode()
        return total

    def _append(self, key: str, frame: dict[str, Any]) -> str:
        self._values[key] = _bytes(_text(self._values.get(key, b"") + _bytes(frame.get("value"))))
        return ""

    def _keep(self, family: str, member: str) -> int:
        """Forget what begins with `family`, but not with `member`: generations that are over."""
        old = [key for key in self._values if key.startswith(family) and not key.startswith(member)]
        for key in old:
            del self._values[key]
        return len(old)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: object) -> bytes:
    if not isinstance(text, str) or len(text) > 4 * BYTES // 3 + 4:
        raise ValueError(f"a value is base64 of at most {BYTES} bytes")
    return base64.b64decode(text, validate=True)


def serve(path: Path) -> None:
    """Serve one dictionary at `path` on threads of its own, until the process ends."""
    listener, stored = wire.listen(path), Stored()

    def accept() -> None:
        while True:
            if found := wire.accept(listener):
                threading.Thread(target=_answer, args=(found[0], stored), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _answer(sock: socket.socket, stored: Stored) -> None:
    try:
        while (frame := wire.receive(sock)) is not None:
            wire.send(sock, stored.handle(frame))
    except (ValueError, OSError):
        pass  # whoever talks nonsense is not answered
    wire.close(sock)
