"""Imports once, forks the rank, and forks it again when it dies: the process between torchrun and each rank. That the
ranks of a generation live and die together is decided here, by rank 0's zygote; what a rank does is rank.py's business.

Rank 0's zygote conducts: at GO everybody forks; when a rank is dead, END has everybody see theirs out and say how it
ended. No generation begins before all ranks of the last one are gone. A zygote that loses another one ends, and
torchrun starts all of them again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import itertools
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from launcher import losses, wire
from launcher.nodes import Nodes
from launcher.process import die_with, is_agent, parent_of
from launcher.pulse import LOOK_S, Pulse
from launcher.start import Place

CONNECT_S = 120.0  # rank 0's zygote may be slow to come up on a busy machine
ANSWER_S = 20.0  # another zygote that says nothing for so long is lost
PATIENCE_S = 1.0  # for a rank to end by itself, as it does when it has lost another, and leaves the reason
PAUSES_S = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0)  # before the next start, by how many in a row came to nothing
SHORT_S = 3.0  # more than STARTS generations in a row that did start, and lived no longer, are no accident either

_log = logging.getLogger(__name__)

BeRank = Callable[[Place, Pulse], None]


def main(place: Place, be_rank: BeRank, modules: Iterable[str]) -> NoReturn:
    """Import `modules`, then have `be_rank` called in a fresh process for every generation, until somebody ends us."""
    path = place.run_dir / "zygotes"
    if place.rank == 0:
        if place.restarts == 0:
            losses.forget(place.run_dir)
        listener = wire.listen(path)
        preload(modules)
        Conductor(Nursery(place, be_rank), listener).run()
    preload(modules)
    conductor = wire.connect(path, CONNECT_S)
    follow(Nursery(place, be_rank), conductor)


def preload(modules: Iterable[str]) -> None:
    """Import what every generation needs. What cannot be imported is for the rank to complain about."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would not survive the fork
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # is_available() is asked without touching CUDA
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a rank's collections would copy what it shares with us


def check_forkable() -> None:
    """Raise RuntimeError if a child of this process would be a cripple: CUDA and threads do not survive a fork."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        raise RuntimeError("CUDA was initialised before the fork of a rank")
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise RuntimeError(f"{threads} threads before the fork of a rank")


class Nursery:
    """The one rank that this zygote has forked, if any. Signals end a zygote where it waits: it sees its rank out."""

    def __init__(self, place: Place, be_rank: BeRank) -> None:
        self.place = place
        self.rank: int | None = None  # a descriptor that is readable once the rank is dead; None: there is no rank
        self._be_rank = be_rank
        self._pid, self._generation, self._pulse = 0, 0, Pulse()
        self._told, told = socket.socketpair()
        told.setblocking(False)
        self.sockets = {self._told, told}  # the zygote's own, which no rank may hold open
        signal.set_wakeup_fd(told.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def fork(self, generation: int) -> None:
        """Start the rank of `generation`. Raises RuntimeError if that cannot be done safely."""
        check_forkable()
        zygote = os.getpid()
        self._generation, self._pulse = generation, Pulse()
        self._pid = self._fork()
        if self._pid == 0:
            try:
                self._be_child(zygote)
                self._be_rank(dataclasses.replace(self.place, restarts=generation), self._pulse)
            finally:
                os._exit(losses.EXIT_LOST)  # never back into the zygote's code
        self.rank = os.pidfd_open(self._pid)
        _log.info("forked rank %d, generation %d, process %d", self.place.rank, generation, self._pid)

    def _fork(self) -> int:
        """os.fork, again and again until the machine has room for one more process."""
        for attempt in itertools.count():
            try:
                return os.fork()
            except OSError as error:
                if attempt == 0:
                    _log.warning(
                        "rank %d cannot be started: %s; trying until that is over", self.place.rank, error.strerror
                    )
                self.wait(timeout=PAUSES_S[min(attempt + 2, len(PAUSES_S) - 1)])
        raise AssertionError

    def _be_child(self, zygote: int) -> None:
        die_with(zygote)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            # The kernel's default: a Python handler would make a rank that is blocked in a collective unkillable.
            signal.signal(number, signal.SIG_DFL)
        for sock in self.sockets:
            sock.close()

    def wait(self, *others: socket.socket, timeout: float | None = None) -> list[int | socket.socket]:
        """Block until the rank is dead or one of `others` has something to say: those are returned. A rank that does
        nothing any more is killed. `timeout` is for when there is none.
        """
        watched: list[int | socket.socket] = [self._told, *others, *([] if self.rank is None else [self.rank])]
        while True:
            ready, _, _ = select.select(watched, [], [], timeout if self.rank is None else LOOK_S)
            if self._told in ready:
                self.leave()
            if ready or self.rank is None:
                return ready
            if reason := self._pulse.look(self._pid):
                _log.info("rank %d %s", self.place.rank, reason)
                losses.note_loss(self.place.run_dir, self._generation, f"rank {self.place.rank} {reason}")
                os.kill(self._pid, signal.SIGKILL)

    def bury(self, patience: float = PATIENCE_S) -> int | None:
        """See the rank out: it is gone, with all that it held, when this returns.

        Returns its exit code, negative for a signal; None if it had to be killed, or there was none.
        """
        if self.rank is None:
            return None
        ended, _, _ = select.select([self.rank], [], [], patience)
        os.close(self.rank)
        self.rank = None
        if not ended:
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status) if ended else None
        _log.info("rank %d is gone: it %s", self.place.rank, losses.how(code))
        return code

    def leave(self) -> NoReturn:
        """End this zygote and its rank."""
        self.bury(patience=0)
        os._exit(losses.EXIT_LOST)


class Conductor:
    """Rank 0's zygote."""

    def __init__(self, nursery: Nursery, listener: socket.socket) -> None:
        self._nursery, self._listener = nursery, listener
        self._run_dir: Path = nursery.place.run_dir
        self._generation = 0
        self._working: dict[socket.socket, bool] = {}  # the other zygotes; whether they have a rank now
        self._ends: dict[int, int | None] = {}  # of the ranks of this generation, in the order in which we heard
        nursery.sockets.add(listener)

    def run(self) -> NoReturn:
        """One generation after the other."""
        short = 0
        while True:
            self._generation = losses.next_generation(self._run_dir)
            began = time.monotonic()
            self._begin()
            self._end()
            losses.note_ends(self._run_dir, self._generation, self._ends)
            short = short + 1 if time.monotonic() - began < SHORT_S else 0
            failed = losses.failed_starts(self._run_dir, self._generation)
            last = len(PAUSES_S) - 1
            self._nursery.wait(timeout=PAUSES_S[last if short > losses.STARTS else min(failed, last)])

    def _begin(self) -> None:
        """Have everybody fork, also who comes late, and wait until a rank is dead."""
        self._ends = {}
        self._nursery.fork(self._generation)
        for peer in self._working:
            self._go(peer)
        while not self._ends:
            ready = self._nursery.wait(self._listener, *self._working)
            if self._listener in ready:
                self._admit()
            for peer in self._working:
                if peer in ready:
                    self._hear(peer)
            if self._nursery.rank in ready:
                return

    def _end(self) -> None:
        """No rank of this generation is left when this returns. Rank 0 goes first: it knows who was lost, and why."""
        self._ends[0] = self._nursery.bury()
        working = [peer for peer, works in self._working.items() if works]
        for peer in working:
            self._tell(peer, {"do": "END"})
        for peer in working:
            self._hear(peer)

    def _admit(self) -> None:
        found = wire.accept(self._listener)
        if found is None:
            return
        peer, pid = found
        if _is_sibling(pid):
            peer.settimeout(ANSWER_S)
            self._nursery.sockets.add(peer)
            self._go(peer)
        else:
            peer.close()

    def _go(self, peer: socket.socket) -> None:
        started = losses.last_start(self._run_dir)
        self._tell(peer, {"do": "GO", "generation": self._generation, "started": started})
        self._working[peer] = True

    def _tell(self, peer: socket.socket, order: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # whoever is gone is missed when we listen
            wire.send(peer, order)

    def _hear(self, peer: socket.socket) -> None:
        """All that a zygote ever says: its rank is dead."""
        try:
            frame = wire.receive(peer)
        except OSError:
            frame = None
        if frame is None:
            self._nursery.bury()
            losses.note_loss(self._run_dir, self._generation, "the parent of a rank was lost")
            self._nursery.leave()
        self._ends[frame["rank"]] = frame["end"]
        self._working[peer] = False


def follow(nursery: Nursery, conductor: socket.socket) -> NoReturn:
    """Do what rank 0's zygote says."""
    nursery.sockets.add(conductor)
    while True:
        if conductor in nursery.wait(conductor):
            order = wire.receive(conductor)
            if order is None:
                nursery.leave()
            if order["do"] == "GO":
                if Nodes.here() is not None:  # this one's run directory may be another, and new
                    losses.note_start(nursery.place.run_dir, order["started"])
                nursery.fork(order["generation"])
                continue
        if nursery.rank is not None:  # told to end it, or dead by itself
            frame = {"rank": nursery.place.rank, "end": nursery.bury()}
            with contextlib.suppress(OSError):
                wire.send(conductor, frame)


def _is_sibling(pid: int) -> bool:
    """Whether torchrun started process `pid` beside this one, or on another node, for which its agent speaks."""
    with contextlib.suppress(OSError):
        return is_agent(pid) or parent_of(pid) == os.getppid()
    return False
