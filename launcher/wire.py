"""Datagram frames on a Unix socket: strict JSON, a size cap and the peer's credentials. What a frame means is
schema.py's business.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 64 * 1024  # bytes of one frame
_RETRY_S = 0.02


class WireError(ValueError):
    """What arrived is not a frame: too long, not strict JSON, not an object."""


def encode(frame: dict[str, Any]) -> bytes:
    """The datagram of `frame`. Raises ValueError for NaN, half characters and frames over the limit."""
    data = json.dumps(frame, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    if len(data) > LIMIT:
        raise ValueError(f"a frame of {len(data)} bytes is over the limit of {LIMIT}; shorten the texts in it")
    return data


def decode(data: bytes) -> dict[str, Any]:
    """The frame in a datagram. Raises WireError for anything but one strict JSON object."""
    if len(data) > LIMIT:
        raise WireError(f"a frame of {len(data)} bytes is over the limit of {LIMIT}")
    try:
        frame = json.loads(
            data.decode(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"not strict JSON: {error}") from None
    if not isinstance(frame, dict):
        raise WireError(f"a frame is an object, not {type(frame).__name__}")
    return frame


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, which a dead predecessor may have left behind."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(64)
    return listener


def accept(listener: socket.socket) -> tuple[socket.socket, int] | None:
    """The next connection and the process id at its other end; None if another user's process knocked."""
    sock, _ = listener.accept()
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if uid != os.getuid():
        sock.close()
        return None
    return sock, pid


def connect(path: Path, timeout: float) -> socket.socket:
    """Connect to the listener at `path`, waiting up to `timeout` seconds for it. Raises OSError after that."""
    end = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            if time.monotonic() > end:
                raise
        time.sleep(_RETRY_S)


def send(sock: socket.socket, frame: dict[str, Any], *, wait: bool = True) -> None:
    """Send one frame. Without `wait`, a peer that does not read raises BlockingIOError instead of holding us up."""
    sock.send(encode(frame), socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT))


def receive(sock: socket.socket) -> dict[str, Any] | None:
    """Block until the next frame; None when the other side is gone. Raises WireError for a bad frame."""
    try:
        data, _, flags, _ = sock.recvmsg(LIMIT)
    except ConnectionResetError:
        return None
    if flags & socket.MSG_TRUNC:
        raise WireError(f"a frame over the limit of {LIMIT} bytes")
    return decode(data) if data else None


def close(sock: socket.socket) -> None:
    """Close for both ends, also for a thread of ours that is blocked in `receive`."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    frame = dict(pairs)
    if len(frame) != len(pairs):
        raise ValueError("a key stands twice")
    return frame
