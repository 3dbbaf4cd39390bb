"""Datagrams between two machines over TCP: both prove that they have the run's token before anything else is said, and
every datagram carries a MAC. What the datagrams mean is the business of those who talk, as on a Unix socket.

Protected: nobody without the token is heard, and nothing that he changes, repeats, reorders or drops is taken for ours:
the connection ends instead. Keys are made for each connection from both sides' nonces, one a direction, and the MAC
covers a counter. Not protected: everything can be read on the way, prompts too, and whoever can cut a connection can
end the group. What the process group sends (gloo, NCCL) passes by here and has neither: a private network is assumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
from typing import Any

from launcher import wire

_LENGTH = struct.Struct(">I")
_COUNTER = struct.Struct(">Q")
_MAC = hashlib.sha256().digest_size
_NONCE = 32  # bytes
_GREETING = 1024  # bytes that a stranger may send
GREETING_S = 10.0  # patience with one who has not proved anything


class Stranger(ConnectionError):
    """The other side does not have the token, or speaks something else."""


class Tunnel:
    """One connection, both sides of which have proved themselves. One thread may send while another receives."""

    def __init__(self, sock: socket.socket, send_key: bytes, receive_key: bytes) -> None:
        self._sock = sock
        self._keys = send_key, receive_key
        self._sent = self._received = 0
        _notice_silence(sock)

    def send(self, data: bytes) -> None:
        """Send one datagram. Raises OSError if the other side is gone."""
        self._sock.sendall(_LENGTH.pack(len(data)) + data + _mac(self._keys[0], self._sent, data))
        self._sent += 1

    def receive(self) -> bytes | None:
        """Block until the next datagram; None when the other side is gone. Raises Stranger if it is not from there."""
        try:
            data = _take(self._sock, wire.LIMIT)
            mac = _read(self._sock, _MAC)
        except EOFError:
            return None
        if not hmac.compare_digest(mac, _mac(self._keys[1], self._received, data)):
            raise Stranger("a datagram has a wrong MAC")
        self._received += 1
        return data

    def close(self) -> None:
        """Close for both ends, also for a thread of ours that is blocked in `receive`."""
        wire.close(self._sock)


def answer(sock: socket.socket, token: bytes) -> tuple[Tunnel, dict[str, Any]]:
    """On node 0: have the caller prove itself, then do so, too. Returns what it wants. Raises Stranger or OSError."""
    sock.settimeout(GREETING_S)
    ours = os.urandom(_NONCE).hex()
    _put(sock, {"nonce": ours})
    greeting = _get(sock)
    theirs, about, proof = (greeting.get(name) for name in ("nonce", "about", "proof"))
    if not (
        isinstance(theirs, str) and isinstance(about, dict) and isinstance(proof, str) and len(theirs) == len(ours)
    ):
        raise Stranger("no greeting")
    said = _transcript(ours, theirs, about)
    if not hmac.compare_digest(proof.encode(), _derive(token, b"caller", said).hex().encode()):
        raise Stranger("a wrong token")
    _put(sock, {"proof": _derive(token, b"node 0", said).hex()})
    sock.settimeout(None)
    return Tunnel(sock, _derive(token, b"from node 0", said), _derive(token, b"to node 0", said)), about


def call(sock: socket.socket, token: bytes, about: dict[str, Any]) -> Tunnel:
    """On another node: prove ourselves and have node 0 do so. `about` is what we want there.

    Raises Stranger if node 0 does not take our token or does not have it, and other OSErrors if nobody is there yet.
    """
    sock.settimeout(2 * GREETING_S)
    try:
        theirs = _get(sock).get("nonce")
    except Stranger as error:
        raise ConnectionError(f"no greeting: {error}") from None
    if not isinstance(theirs, str) or len(theirs) != 2 * _NONCE:
        raise ConnectionError("no greeting")
    ours = os.urandom(_NONCE).hex()
    said = _transcript(theirs, ours, about)
    _put(sock, {"nonce": ours, "about": about, "proof": _derive(token, b"caller", said).hex()})
    proof = _get(sock).get("proof")
    if not isinstance(proof, str) or not hmac.compare_digest(
        proof.encode(), _derive(token, b"node 0", said).hex().encode()
    ):
        raise Stranger("a wrong token")
    sock.settimeout(None)
    return Tunnel(sock, _derive(token, b"to node 0", said), _derive(token, b"from node 0", said))


def run_id(token: bytes) -> str:
    """A name of the run that all its nodes know and that gives nothing away."""
    return _derive(token, b"run id", b"")[:12].hex()


def _transcript(node_0: str, caller: str, about: dict[str, Any]) -> bytes:
    return wire.encode({"node 0": node_0, "caller": caller, "about": about})


def _derive(token: bytes, label: bytes, said: bytes) -> bytes:
    return hmac.digest(token, b"distrifusion 1 " + label + b"\0" + said, "sha256")


def _mac(key: bytes, number: int, data: bytes) -> bytes:
    return hmac.digest(key, _COUNTER.pack(number) + data, "sha256")


def _put(sock: socket.socket, frame: dict[str, Any]) -> None:
    data = wire.encode(frame)
    sock.sendall(_LENGTH.pack(len(data)) + data)


def _get(sock: socket.socket) -> dict[str, Any]:
    try:
        return wire.decode(_take(sock, _GREETING))
    except (EOFError, TimeoutError, wire.WireError) as error:
        raise Stranger(str(error) or "it hung up") from None


def _take(sock: socket.socket, limit: int) -> bytes:
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
    if not 0 < length <= limit:
        raise Stranger(f"a datagram of {length} bytes; the limit is {limit}")
    return _read(sock, length)


def _read(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes. Raises EOFError if the other side is gone before."""
    data = b""
    while len(data) < count:
        try:
            part = sock.recv(count - len(data))
        except TimeoutError:
            if sock.gettimeout() is not None:
                raise
            part = b""  # the kernel's: the other machine is silent
        except OSError:
            part = b""
        if not part:
            raise EOFError("it hung up")
        data += part
    return data


def _notice_silence(sock: socket.socket) -> None:
    """A machine that lost its power says nothing: the kernel asks, and gives up after some 15 s."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"KEEPIDLE": 5, "KEEPINTVL": 2, "KEEPCNT": 5, "USER_TIMEOUT": 15_000}.items():
        with contextlib.suppress(OSError):  # not every kind of kernel has all
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"), value)
