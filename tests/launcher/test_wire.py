"""Frames: what gets through unchanged, and what does not get through at all."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket
import threading
from pathlib import Path

import pytest

from launcher import wire


@pytest.fixture
def pair(tmp_path: Path) -> tuple[socket.socket, socket.socket]:
    listener = wire.listen(tmp_path / "s")
    near = wire.connect(tmp_path / "s", 5)
    accepted = wire.accept(listener)
    assert accepted is not None
    assert accepted[1] == os.getpid()
    return near, accepted[0]


def test_a_frame_arrives_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    frame = {"type": "X", "text": "Möwe 🐦", "n": 3, "x": 1.5, "none": None, "list": [1, [2]]}
    wire.send(near, frame)
    wire.send(near, {"second": True})
    assert wire.receive(far) == frame
    assert wire.receive(far) == {"second": True}
    wire.close(near)
    assert wire.receive(far) is None


def test_receive_wakes_when_the_socket_is_closed_elsewhere(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(wire.receive(far)))
    thread.start()
    wire.close(near)
    thread.join(5)
    assert seen == [None]


BAD = [
    b"",
    b"null",
    b"[]",
    b"3",
    b'"x"',
    b"{",
    b'{"a":NaN}',
    b'{"a":Infinity}',
    b'{"a":-Infinity}',
    b'{"a":1e999}',
    b'{"a":1,"a":2}',
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":"\xff"}',
    b"{'a':1}",
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b"{} {}",
    b"{}\x00",
    pickle.dumps({"type": "HELLO"}),
]


@pytest.mark.parametrize("data", BAD, ids=lambda data: repr(data[:20]))
def test_anything_but_one_strict_object_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(data)


def test_random_bytes_never_do_anything_but_raise() -> None:
    source = random.Random(1)
    valid = json.dumps({"type": "STEP", "req": "a", "x": [1, 2.5, None, {"y": "z"}]}).encode()
    for _ in range(3000):
        data = bytearray(source.randbytes(source.randrange(200)) if source.random() < 0.5 else valid)
        for _ in range(source.randrange(4)):
            if data:
                data[source.randrange(len(data))] = source.randrange(256)
        with contextlib.suppress(wire.WireError):
            assert isinstance(wire.decode(bytes(data)), dict)


def test_oversize_is_refused_on_both_sides(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    with pytest.raises(ValueError, match="over the limit"):
        wire.encode({"a": "x" * wire.LIMIT})
    near.send(b'{"a":"' + b"x" * (wire.LIMIT + 100) + b'"}')
    with pytest.raises(wire.WireError, match="over the limit"):
        wire.receive(far)


def test_nan_and_half_characters_are_not_sent() -> None:
    with pytest.raises(ValueError):
        wire.encode({"a": float("nan")})
    with pytest.raises(ValueError):
        wire.encode({"a": "\ud800"})


def test_another_users_process_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = wire.listen(tmp_path / "s")
    near = wire.connect(tmp_path / "s", 5)
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert wire.accept(listener) is None
    assert wire.receive(near) is None


def test_connect_waits_for_the_listener_and_gives_up_in_time(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        wire.connect(tmp_path / "nobody", 0.1)
    threading.Timer(0.2, lambda: keep.append(wire.listen(tmp_path / "late"))).start()
    keep: list[socket.socket] = []
    wire.connect(tmp_path / "late", 5).close()


def test_a_dead_listeners_socket_file_is_taken_over(tmp_path: Path) -> None:
    wire.listen(tmp_path / "s").close()
    listener = wire.listen(tmp_path / "s")
    wire.connect(tmp_path / "s", 5)
    assert wire.accept(listener) is not None


def test_a_peer_that_does_not_read_holds_nobody_up(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair

    def flood() -> None:
        while True:
            wire.send(near, {"a": "x" * 1000}, wait=False)

    with pytest.raises(BlockingIOError):
        flood()
