"""Connects the hub to the world: the ranks' sockets, the journal, the clock and the threads of the page. Every event
goes through `feed`, one at a time; what follows from it is hub.py's business.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from launcher import logs, wire
from launcher import messages as m
from launcher.events import Action, Die, Event, Heard, Lost, Send, Tick, Write
from launcher.hub import Hub
from launcher.job import Job
from launcher.journal import Journal
from launcher.process import is_agent, parent_of
from launcher.prometheus import Metrics

TICK_S = 0.5
_log = logging.getLogger(__name__)


class HubLoop:
    """Runs one hub on a listening socket. `changed` guards the hub and is notified after every event."""

    def __init__(
        self,
        hub: Hub,
        journal: Journal,
        listener: socket.socket,
        *,
        die: Callable[[str], None],
        metrics: Metrics | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.hub = hub
        self.journal = journal
        self.metrics = metrics or Metrics()
        self.changed = threading.Condition()
        self._die = die
        self._beat = beat  # tells whoever watches that this goes on
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener
        self._pids: dict[socket.socket, int] = {}
        self._loading: dict[socket.socket, int | None] = {}  # ranks that have not said HELLO; None: a stranger
        self._ranks: dict[socket.socket, int] = {}
        self._socks: dict[int, socket.socket] = {}

    def start(self) -> None:
        """Serve on a thread of its own until the process ends."""
        threading.Thread(target=self._run, name="hub", daemon=True).start()

    def feed(self, event: Event) -> None:
        """Let the hub handle `event` and do what it asks for. Callable from any thread; waits for no rank."""
        with self.changed:
            events = deque([event])
            while events:
                for action in self.hub.handle(events.popleft(), time.monotonic()):
                    if lost := self._do(action):
                        events.append(lost)
            self.changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select(TICK_S):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    self._accept() if sock is self._listener else self._read(sock)
                self.feed(Tick())
                self._beat()
        except Exception:
            _log.exception("the hub failed")
            self._die("the hub failed")

    def _accept(self) -> None:
        if found := wire.accept(self._listener):
            sock, pid = found
            self._pids[sock] = pid
            self._loading[sock] = _rank_of(pid)
            self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, sock: socket.socket) -> None:
        rank = self._ranks.get(sock)
        try:
            frame = wire.receive(sock)
            message = m.parse(frame, m.FROM_RANK) if frame is not None else None
            if message is not None and rank is None:
                rank = self._introduce(sock, message)
        except (ValueError, OSError) as error:
            _log.info("a bad frame from process %d: %s", self._pids[sock], error)
            self._drop(sock, f"sent a bad frame ({error})")
            return
        if message is None:
            self._drop(sock, "stopped answering")
        else:
            assert rank is not None
            self.feed(Heard(rank, message))
            if isinstance(message, m.Step):
                self.metrics.step(rank, message)

    def _introduce(self, sock: socket.socket, message: m.Message) -> int:
        """The rank of a connection that speaks for the first time. Raises ValueError if it is none of ours."""
        pid = self._pids[sock]
        if not isinstance(message, m.Hello) or (message.pid != pid and not is_agent(pid)):
            raise ValueError("the first word is a HELLO with its own process id")
        if message.rank in self._socks or message.rank >= self.hub.roster.world:
            raise ValueError(f"there is no free place for rank {message.rank}")
        del self._loading[sock]
        self._ranks[sock] = message.rank
        self._socks[message.rank] = sock
        return message.rank

    def _drop(self, sock: socket.socket, reason: str) -> None:
        self._selector.unregister(sock)
        rank = self._ranks.get(sock, self._loading.pop(sock, None))
        if rank is not None:  # a stranger's bad manners concern nobody
            self.feed(Lost(rank, reason))  # before the rank notices, so that the true reason is the one noted
        self._ranks.pop(sock, None)
        self._pids.pop(sock, None)
        wire.close(sock)

    def _do(self, action: Action) -> Event | None:
        match action:
            case Send(rank, message):
                try:
                    wire.send(self._socks[rank], message.frame(), wait=False)
                except OSError:
                    return Lost(rank, "takes no messages")
            case Write(entry, job):
                with logs.about(job.id):
                    self._write(entry, job)
            case Die(reason):
                _log.info("the group ends: %s", reason)
                self._die(reason)
        return None

    def _write(self, entry: str, job: Job) -> None:
        _log.info("%s: %s", entry, job.message if entry == "finished" else f"attempt {job.attempts}")
        if entry == "finished":
            self.metrics.finished(job)
        write = {"try": self.journal.tried, "stop": self.journal.stopped, "finished": self.journal.finished}
        try:
            write[entry](job)
        except OSError as error:
            _log.error("the journal cannot be written: %s", error)


def _rank_of(pid: int) -> int | None:
    """The rank that process `pid` is, if it is one of this group; it may die before it can say so."""
    try:
        ours = parent_of(parent_of(pid)) == parent_of(os.getppid())  # torchrun, with a zygote between it and a rank
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [word[5:].decode() for word in words if word.startswith(b"RANK=")]
    return int(ranks[0]) if ours and ranks and ranks[0].isdigit() else None
