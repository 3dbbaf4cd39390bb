"""Messages between ranks of one host through shared memory: a copy into pages that the peer has mapped, and a 32-byte
token on a Unix socket that says so. Far less overhead a message than a TCP collective on loopback, a sleeping wait,
and a dead peer is noticed at once. What is sent, and when, is decided in mesh.py and above.

Protocol, for each pair of ranks and each direction: one arena of anonymous memory (memfd), whose descriptor the peer
gets when they meet; DATA(tag, place) after the bytes are in the arena; FREE(place) after the receiver has copied them
out. The arena is sparse: pages exist once they are written, and go back to the system by `trim`. It has no name, and
nothing is left behind by a killed process.

Beside the links every rank has a board: one arena in which it writes and all its peers read, in place and without a
word. Who may write or read which part of it when is for others to know.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from distri_engine.errors import MeshError

_ARENA = 1 << 34  # bytes of address space a direction; a picture's messages in flight must fit
_TOKEN = struct.Struct("<QQQQ")  # kind, offset in the sender's arena, bytes, tag
_DATA, _FREE = 0, 1
_PAGE = 4096
_READ = 64 * 1024  # bytes of tokens at a time
_INT = struct.Struct("i")


def _map(descriptor: int) -> tuple[mmap.mmap, torch.Tensor]:
    """The pages behind `descriptor`, which is closed, and the same as a tensor: [_ARENA], uint8."""
    try:
        pages = mmap.mmap(descriptor, _ARENA)
    finally:
        os.close(descriptor)
    # Not an inference tensor, whoever asks: pictures in and out of inference mode share it.
    with torch.inference_mode(False):
        return pages, torch.frombuffer(pages, dtype=torch.uint8)


def _new_arena() -> int:
    descriptor = os.memfd_create("distri", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _ARENA)
    return descriptor


class Board:
    """This rank's board: places in it, given out and taken back."""

    def __init__(self) -> None:
        self.descriptor = _new_arena()
        self._pages, self._bytes = _map(os.dup(self.descriptor))
        self._used = 0  # bytes that have been given out once
        self._free: dict[int, list[int]] = {}  # size -> offsets to give out again

    def take(self, count: int) -> tuple[int, torch.Tensor]:
        """A place for `count` bytes: its offset, by which peers find it, and the bytes. Raises MeshError if full."""
        size = _room(count)
        if spare := self._free.get(size):
            offset = spare.pop()
        else:
            offset, self._used = self._used, self._used + size
            if self._used > _ARENA:
                raise MeshError(f"buffers exceed {_ARENA >> 30} GiB; use a smaller size or more ranks")
        return offset, self._bytes[offset : offset + count]

    def give_back(self, offset: int, count: int) -> None:
        """The place may go to somebody else, and its memory to the system."""
        size = _room(count)
        self._pages.madvise(mmap.MADV_REMOVE, offset, size)
        self._free.setdefault(size, []).append(offset)


def _room(count: int) -> int:
    """Places have sizes of few kinds, so that they can be given out again."""
    return max(_PAGE, 1 << (count - 1).bit_length())


class _Link:
    """One peer: the socket, the arena that goes out, and the one that comes in."""

    def __init__(self, rank: int, sock: socket.socket, board: int) -> None:
        """`board`: the descriptor of this rank's own one, for the peer."""
        self.rank = rank
        self._socket = sock
        descriptor = _new_arena()
        socket.send_fds(sock, [b"a"], [descriptor, board])
        self._out_pages, self._out = _map(descriptor)
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 2)
        if len(descriptors) < 2:
            raise OSError(f"rank {rank} hung up")
        _, self._in = _map(descriptors[0])
        _, self.board = _map(descriptors[1])
        self._used = 0  # bytes of `_out` that have been given out once
        self._free: dict[int, list[int]] = {}  # size -> offsets to give out again
        self._sizes: dict[int, int] = {}  # offset -> size
        self._arrived: dict[int, tuple[int, int]] = {}  # tag -> (offset, bytes)
        self._partial = b""

    def send(self, tag: int, payload: torch.Tensor) -> None:
        """Copy `payload` (contiguous, CPU) to the peer; never waits for it to be read."""
        flat = payload.reshape(-1).view(torch.uint8)
        offset = self._place(flat.numel())
        self._out[offset : offset + flat.numel()].copy_(flat)
        self._push(_TOKEN.pack(_DATA, offset, flat.numel(), tag))

    def _place(self, count: int) -> int:
        size = _room(count)
        spare = self._free.setdefault(size, [])
        if not spare:
            self._read(blocking=False)  # perhaps the peer has freed one
        if spare:
            return spare.pop()
        offset, self._used = self._used, self._used + size
        if self._used > _ARENA:
            raise MeshError(f"messages to rank {self.rank} exceed {_ARENA >> 30} GiB; use a smaller size or more ranks")
        self._sizes[offset] = size
        return offset

    def trim(self) -> None:
        """Give the memory of all places that the peer has read back to the system; they stay usable."""
        with suppress(MeshError):  # of a peer that has hung up, the next message will tell
            self._read(blocking=False)
        for size, offsets in self._free.items():
            for offset in offsets:
                self._out_pages.madvise(mmap.MADV_REMOVE, offset, size)

    def receive(self, tag: int, into: torch.Tensor) -> None:
        """Wait for message `tag` and copy it to `into` (contiguous, CPU). Raises MeshError if it has another size."""
        while tag not in self._arrived:
            self._read(blocking=True)
        offset, size = self._arrived.pop(tag)
        flat = into.reshape(-1).view(torch.uint8)
        if flat.numel() != size:
            raise MeshError(
                f"rank {self.rank} sent {size} bytes where {flat.numel()} were expected: the ranks are not in the same "
                "call, as after an error on one of them; start the program again"
            )
        flat.copy_(self._in[offset : offset + size])
        with suppress(MeshError):  # a peer that has hung up after its last message does not need the place back
            self._push(_TOKEN.pack(_FREE, offset, 0, 0))

    def _push(self, token: bytes) -> None:
        """Write a token. If the socket is full, read: the peer may be waiting for that in order to read ours."""
        try:
            while True:
                try:
                    self._socket.send(token, socket.MSG_DONTWAIT)
                    return
                except BlockingIOError:
                    readable, _, _ = select.select([self._socket], [self._socket], [])
                    if readable:
                        self._read(blocking=False)
        except OSError as error:
            raise MeshError(f"rank {self.rank} is gone: {error.strerror or error}") from error

    def _read(self, *, blocking: bool) -> None:
        """Take what tokens there are; with `blocking`, wait for the first."""
        try:
            data = self._socket.recv(_READ, 0 if blocking else socket.MSG_DONTWAIT)
        except BlockingIOError:
            if blocking:  # the socket's own timeout
                raise MeshError(f"rank {self.rank} did not answer in time") from None
            return
        except OSError as error:
            raise MeshError(f"rank {self.rank} is gone: {error.strerror or error}") from error
        if not data:
            raise MeshError(f"rank {self.rank} is gone: it closed its connection")
        data = self._partial + data
        whole = len(data) // _TOKEN.size * _TOKEN.size
        self._partial = data[whole:]
        for kind, offset, size, tag in _TOKEN.iter_unpack(data[:whole]):
            if kind == _FREE:
                self._free[self._sizes[offset]].append(offset)
            else:
                self._arrived[tag] = (offset, size)

    def close(self) -> None:
        """Hang up; a peer that waits for us is woken, also if a forked child still holds the socket."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class HostLinks:
    """Links from this rank to all others of its host."""

    def __init__(self, links: Mapping[int, _Link], board: Board) -> None:
        self._links = dict(links)
        self.board = board

    @classmethod
    def meet(cls, folder: Path, rank: int, size: int, listener: socket.socket, timeout: float) -> HostLinks:
        """Connect all pairs. Every rank must be listening in `folder` (see `listen`) before any rank calls this."""
        links: dict[int, _Link] = {}
        board = Board()
        try:
            for peer in range(rank):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                _set_timeout(sock, timeout)
                sock.connect(str(folder / str(peer)))
                sock.sendall(struct.pack("<H", rank))
                links[peer] = _Link(peer, sock, board.descriptor)
            for _ in range(rank + 1, size):
                sock, _ = listener.accept()
                _set_timeout(sock, timeout)
                if _peer_uid(sock) != os.getuid():
                    sock.close()
                    raise MeshError("a process of another user connected to this rank")
                (peer,) = struct.unpack("<H", sock.recv(2, socket.MSG_WAITALL))
                links[peer] = _Link(peer, sock, board.descriptor)
        except (OSError, struct.error) as error:
            for link in links.values():
                link.close()
            raise MeshError(f"the ranks of this host could not connect to each other: {error}") from error
        finally:
            os.close(board.descriptor)  # everybody has it mapped
        return cls(links, board)

    def look(self, peer: int, offset: int, count: int) -> torch.Tensor:
        """`count` bytes of the board of `peer`, in place; for reading."""
        return self._links[peer].board[offset : offset + count]

    def send(self, tag: int, peer: int, payload: torch.Tensor) -> None:
        """Copy `payload` to `peer` as message `tag`."""
        self._links[peer].send(tag, payload)

    def receive(self, tag: int, peer: int, into: torch.Tensor) -> None:
        """Wait for message `tag` of `peer`. Raises MeshError if it is gone."""
        self._links[peer].receive(tag, into)

    def trim(self) -> None:
        """Give back the memory of all messages that have been read."""
        for link in self._links.values():
            link.trim()

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
