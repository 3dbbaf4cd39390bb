"""Makes the sockets in node 0's run directory appear in those of the other nodes: datagrams of every connection are
passed on through a tunnel of its own. Ranks talk to the hub as on one machine; what they say is nobody's business here.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import tunnel, wire
from launcher.nodes import Nodes
from launcher.tunnel import Stranger, Tunnel

_log = logging.getLogger(__name__)

CHANNELS = ("store", "hub", "zygotes")  # the sockets of node 0 that the others have, too
_NODE = "node"  # the connection by which two agents know of each other
CONNECT_S = 120.0  # for a rank 0 that is slow to come up
_RETRY_S = 0.5
_STRANGERS = 32  # connections that have not proved themselves, at a time


class Gate:
    """Node 0's side: the only listener on the network."""

    def __init__(self, nodes: Nodes, token: bytes, run_dir: Path) -> None:
        """Listen on `nodes.host` alone. Raises OSError if that cannot be."""
        self._nodes, self._token, self._run_dir = nodes, token, run_dir
        self._present: set[int] = set()
        self._lock = threading.Lock()
        self._strangers = threading.BoundedSemaphore(_STRANGERS)
        self._complained: set[str] = set()
        family, _, _, _, address = socket.getaddrinfo(nodes.host, nodes.port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(address[:2], family=family, backlog=64)
        _start(self._serve)

    def _serve(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:  # one who hung up at once, or too many open files
                time.sleep(_RETRY_S)
                continue
            if self._strangers.acquire(blocking=False):
                _start(self._meet, sock, str(address[0]))
            else:
                sock.close()

    def _meet(self, sock: socket.socket, address: str) -> None:
        patience = threading.Timer(tunnel.GREETING_S, wire.close, [sock])  # in all, however slowly he speaks
        patience.start()
        try:
            link, about = tunnel.answer(sock, self._token)
        except OSError as error:
            wire.close(sock)
            self._complain(address, error)
            return
        finally:
            patience.cancel()
            self._strangers.release()
        if about.get("channel") == _NODE:
            self._know(link, about)
        elif about.get("channel") in CHANNELS:
            try:
                inside = wire.connect(self._run_dir / about["channel"], CONNECT_S)
            except OSError:
                link.close()
            else:
                _pass_on(inside, link)
        else:
            link.close()

    def _complain(self, address: str, error: OSError) -> None:
        with self._lock:
            if address in self._complained or len(self._complained) > 99:  # nobody fills our log
                return
            self._complained.add(address)
        _say(f"{address} was turned away from {self._nodes.where}: {error}")

    def _know(self, link: Tunnel, about: dict[str, Any]) -> None:
        """Another node is here for as long as this connection lasts."""
        node: Any = about.get("rank")
        with self._lock:
            complaint = ""
            if about.get("count") != self._nodes.count:
                complaint = f"this run has --nnodes {self._nodes.count}, not {about.get('count')}"
            elif node not in range(1, self._nodes.count) or node in self._present:
                complaint = f"there is no free place for node {node}; every node has a --node-rank of its own"
            else:
                self._present.add(node)
        try:
            with contextlib.suppress(OSError):
                link.send(wire.encode({"error": complaint}))
                while not complaint and link.receive() is not None:
                    pass
        finally:
            link.close()
            if not complaint:
                with self._lock:
                    self._present.discard(node)


class Porch:
    """Another node's side: sockets in its run directory that lead to node 0's."""

    def __init__(self, nodes: Nodes, token: bytes, run_dir: Path) -> None:
        self._nodes, self._token, self._run_dir = nodes, token, run_dir

    def open(self, lost: Callable[[], None]) -> None:
        """Wait for node 0 and make its sockets appear; `lost` is called when node 0 is gone.

        Raises ConnectionError if it does not want this node, with the reason.
        """
        link = self._find()
        frame = link.receive()
        complaint = wire.decode(frame)["error"] if frame else "it hung up"
        if complaint:
            link.close()
            raise ConnectionError(f"node 0 at {self._nodes.where} refused this node: {complaint}")
        for channel in CHANNELS:
            _start(self._serve, wire.listen(self._run_dir / channel), channel)

        def watch() -> None:
            with contextlib.suppress(OSError):
                link.receive()
            lost()

        _start(watch)

    def _find(self) -> Tunnel:
        about = {"channel": _NODE, "rank": self._nodes.rank, "count": self._nodes.count}
        said = False
        while True:
            try:
                return self._call(about)
            except Stranger as error:
                raise ConnectionError(
                    f"node 0 at {self._nodes.where} and this node do not trust each other ({error}); "
                    f"give both the same --token-file"
                ) from None
            except OSError as error:
                if not said:
                    _say(f"waiting for node 0 at {self._nodes.where} ({error.strerror or error})")
                said = True
            time.sleep(_RETRY_S)

    def _call(self, about: dict[str, Any]) -> Tunnel:
        sock = socket.create_connection((self._nodes.host, self._nodes.port), timeout=tunnel.GREETING_S)
        try:
            return tunnel.call(sock, self._token, about)
        except BaseException:
            sock.close()
            raise

    def _serve(self, listener: socket.socket, channel: str) -> None:
        while True:
            if found := wire.accept(listener):
                _start(self._lead, found[0], channel)

    def _lead(self, inside: socket.socket, channel: str) -> None:
        try:
            link = self._call({"channel": channel})
        except OSError:
            wire.close(inside)
        else:
            _pass_on(inside, link)


def _pass_on(inside: socket.socket, link: Tunnel) -> None:
    """Datagrams both ways, until one side is gone; then so is the other."""

    def outwards() -> None:
        with contextlib.suppress(OSError):
            while data := inside.recv(wire.LIMIT + 1):
                link.send(data)
        link.close()

    _start(outwards)
    with contextlib.suppress(OSError):
        while (data := link.receive()) is not None:
            inside.send(data, socket.MSG_NOSIGNAL)
    link.close()
    wire.close(inside)


def _start(target: Callable[..., None], *args: object) -> None:
    threading.Thread(target=target, args=args, daemon=True).start()


def _say(text: str) -> None:
    _log.warning("%s", text)
