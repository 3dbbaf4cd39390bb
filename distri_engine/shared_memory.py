"""Messages between ranks of one host through shared memory: a copy into a segment that the peer has mapped, and a
24-byte token on a Unix socket that says so. Ten to fifty times less overhead a message than a TCP collective on
loopback, a sleeping wait, and a dead peer is noticed at once. What is sent, and when, is decided in mesh.py and
above.

Protocol, for each pair of ranks: DATA(tag, segment) after the bytes are in the segment, with the segment's file
descriptor beside it when it is new; FREE(segment) after the receiver has copied them out. Segments are anonymous
memory (memfd): no name, no limit of a mount, nothing left behind by a killed process.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from distri_engine.errors import MeshError

_TOKEN = struct.Struct("<IIQQ")  # kind, segment, bytes, tag
_INT = struct.Struct("i")
_DATA, _DATA_NEW, _FREE = 0, 1, 2
_PAGE = mmap.PAGESIZE
_READ = 64 * 1024  # bytes of tokens at a time
_MAX_FDS = 64


@dataclass
class _Segment:
    """Shared pages, mapped on this side."""

    number: int
    bytes: torch.Tensor  # uint8, the pages themselves


def _map(number: int, descriptor: int) -> _Segment:
    # By torch rather than by mmap.mmap(), which would keep a descriptor open for every segment.
    size = os.fstat(descriptor).st_size
    pages = torch.from_file(f"/proc/self/fd/{descriptor}", shared=True, size=size, dtype=torch.uint8)
    return _Segment(number, pages)


class _Link:
    """One peer: the socket, the segments that go out, and the ones that come in."""

    def __init__(self, rank: int, sock: socket.socket) -> None:
        self.rank = rank
        self._socket = sock
        self._own: dict[int, _Segment] = {}
        self._free: dict[int, list[_Segment]] = {}  # by size
        self._peers: dict[int, _Segment] = {}
        self._arrived: dict[int, tuple[int, int]] = {}  # tag -> (segment, bytes)
        self._descriptors: deque[int] = deque()
        self._partial = b""

    def send(self, tag: int, payload: torch.Tensor) -> None:
        """Copy `payload` (contiguous, CPU) to the peer; never waits for it to be read."""
        flat = payload.reshape(-1).view(torch.uint8)
        size = max(_PAGE, 1 << (flat.numel() - 1).bit_length())
        spare = self._free.setdefault(size, [])
        if not spare:
            self._read(blocking=False)  # perhaps the peer has freed one
        fresh = not spare
        descriptor = -1
        if fresh:
            descriptor = os.memfd_create("distri", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size)
            segment = _map(len(self._own), descriptor)
            self._own[segment.number] = segment
        else:
            segment = spare.pop()
        segment.bytes[: flat.numel()].copy_(flat)
        self._push(_TOKEN.pack(_DATA_NEW if fresh else _DATA, segment.number, flat.numel(), tag), descriptor)

    def receive(self, tag: int, into: torch.Tensor) -> None:
        """Wait for message `tag` and copy it to `into` (contiguous, CPU)."""
        while tag not in self._arrived:
            self._read(blocking=True)
        number, size = self._arrived.pop(tag)
        flat = into.reshape(-1).view(torch.uint8)
        assert flat.numel() == size, f"rank {self.rank} sent {size} bytes where {flat.numel()} were expected"
        flat.copy_(self._peers[number].bytes[:size])
        with suppress(MeshError):  # a peer that has hung up after its last message does not need the segment back
            self._push(_TOKEN.pack(_FREE, number, 0, 0), -1)

    def _push(self, token: bytes, descriptor: int) -> None:
        """Write a token. If the socket is full, read: the peer may be waiting for that in order to read ours."""
        try:
            while True:
                try:
                    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(descriptor))]
                    self._socket.sendmsg([token], beside if descriptor >= 0 else [], socket.MSG_DONTWAIT)
                    return
                except BlockingIOError:
                    readable, _, _ = select.select([self._socket], [self._socket], [])
                    if readable:
                        self._read(blocking=False)
        except OSError as error:
            raise MeshError(f"rank {self.rank} is gone: {error.strerror or error}") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _read(self, *, blocking: bool) -> None:
        """Take what tokens there are; with `blocking`, wait for the first."""
        try:
            flags = socket.MSG_CMSG_CLOEXEC | (0 if blocking else socket.MSG_DONTWAIT)
            data, beside, _, _ = self._socket.recvmsg(_READ, socket.CMSG_SPACE(_MAX_FDS * _INT.size), flags)
        except BlockingIOError:
            if blocking:  # the socket's own timeout
                raise MeshError(f"rank {self.rank} did not answer in time") from None
            return
        except OSError as error:
            raise MeshError(f"rank {self.rank} is gone: {error.strerror or error}") from error
        if not data:
            raise MeshError(f"rank {self.rank} is gone: it closed its connection")
        for level, kind, content in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors.extend(descriptor for (descriptor,) in _INT.iter_unpack(content))
        data = self._partial + data
        whole = len(data) // _TOKEN.size * _TOKEN.size
        self._partial = data[whole:]
        for kind, number, size, tag in _TOKEN.iter_unpack(data[:whole]):
            if kind == _FREE:
                segment = self._own[number]
                self._free[segment.bytes.numel()].append(segment)
                continue
            if kind == _DATA_NEW:
                descriptor = self._descriptors.popleft()
                self._peers[number] = _map(number, descriptor)
                os.close(descriptor)
            self._arrived[tag] = (number, size)

    def close(self) -> None:
        """Hang up; a peer that waits for us is woken."""
        self._socket.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


class HostLinks:
    """Links from this rank to all others of its host."""

    def __init__(self, links: Mapping[int, _Link]) -> None:
        self._links = dict(links)

    @classmethod
    def meet(cls, folder: Path, rank: int, size: int, listener: socket.socket, timeout: float) -> HostLinks:
        """Connect all pairs. Every rank must be listening in `folder` (see `listen`) before any rank calls this."""
        links: dict[int, _Link] = {}
        try:
            for peer in range(rank):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                _set_timeout(sock, timeout)
                sock.connect(str(folder / str(peer)))
                sock.sendall(struct.pack("<H", rank))
                links[peer] = _Link(peer, sock)
            for _ in range(rank + 1, size):
                sock, _ = listener.accept()
                _set_timeout(sock, timeout)
                if _peer_uid(sock) != os.getuid():
                    sock.close()
                    raise MeshError("a process of another user connected to this rank")
                (peer,) = struct.unpack("<H", sock.recv(2, socket.MSG_WAITALL))
                links[peer] = _Link(peer, sock)
        except (OSError, struct.error) as error:
            for link in links.values():
                link.close()
            raise MeshError(f"the ranks of this host could not connect to each other: {error}") from error
        return cls(links)

    def send(self, tag: int, peer: int, payload: torch.Tensor) -> None:
        """Copy `payload` to `peer` as message `tag`."""
        self._links[peer].send(tag, payload)

    def receive(self, tag: int, peer: int, into: torch.Tensor) -> None:
        """Wait for message `tag` of `peer`. Raises MeshError if it is gone."""
        self._links[peer].receive(tag, into)

    def close(self) -> None:
        """Hang up on everybody."""
        for link in self._links.values():
            link.close()


def listen(folder: Path, rank: int, size: int, timeout: float) -> socket.socket:
    """This rank's door in `folder`, which only its user can enter."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _set_timeout(listener, timeout)
    listener.bind(str(folder / str(rank)))
    listener.listen(size)
    return listener


def _set_timeout(sock: socket.socket, seconds: float) -> None:
    # In the kernel rather than by settimeout(), which would put a poll before every read.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), 0))


def _peer_uid(sock: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
