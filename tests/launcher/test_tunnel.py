"""Between machines: who gets in, what is noticed on the way, and the store that torch gets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from launcher import store_server, tunnel, wire
from launcher.node_store import NodeStore
from launcher.nodes import read_token
from launcher.tunnel import Stranger, Tunnel

TOKEN = b"0123456789abcdef"


def both(near: Callable[[], Any], far: Callable[[], Any]) -> list[Any]:
    """What two sides return, or raise, at the same time."""
    results: list[Any] = [None, None]

    def run(index: int, side: Callable[[], Any]) -> None:
        try:
            results[index] = side()
        except OSError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate((near, far))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture
def sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


def meet(sockets: tuple[socket.socket, socket.socket]) -> tuple[Tunnel, Tunnel]:
    near, (far, about) = both(
        lambda: tunnel.call(sockets[0], TOKEN, {"channel": "hub"}), lambda: tunnel.answer(sockets[1], TOKEN)
    )
    assert about == {"channel": "hub"}
    return near, far


def test_both_sides_hear_what_the_other_sends(sockets: tuple[socket.socket, socket.socket]) -> None:
    near, far = meet(sockets)
    for sender, receiver in ((near, far), (far, near)):
        for data in (b"one", b"two", bytes(wire.LIMIT)):
            sent = threading.Thread(target=sender.send, args=(data,))
            sent.start()
            assert receiver.receive() == data
            sent.join()
    near.close()
    assert far.receive() is None


@pytest.mark.parametrize(("theirs", "ours"), [(b"x" * 16, TOKEN), (TOKEN, b"x" * 16)])
def test_two_tokens_meet_and_nobody_gets_in(
    sockets: tuple[socket.socket, socket.socket], theirs: bytes, ours: bytes
) -> None:
    def answer() -> Any:
        try:
            return tunnel.answer(sockets[1], ours)
        finally:
            wire.close(sockets[1])

    near, far = both(lambda: tunnel.call(sockets[0], theirs, {}), answer)
    assert isinstance(near, Stranger)
    assert isinstance(far, Stranger)


def test_a_false_node_0_that_sends_our_own_proof_back_is_not_believed(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    def mirror() -> None:
        tunnel._put(sockets[1], {"nonce": "0" * 64})
        tunnel._put(sockets[1], {"proof": tunnel._get(sockets[1])["proof"]})

    near, _ = both(lambda: tunnel.call(sockets[0], TOKEN, {}), mirror)
    assert isinstance(near, Stranger)


@pytest.mark.parametrize("attack", ["changed", "again", "skipped", "echoed"])
def test_what_is_not_as_it_was_sent_ends_the_connection(
    sockets: tuple[socket.socket, socket.socket], attack: str
) -> None:
    """The attacker owns the wire: what a side sends goes to him, and what he makes of it goes on."""
    near, far = meet(sockets)
    taken, given = socket.socketpair()
    near._sock = given
    near.send(b"a datagram")
    near.send(b"the second")
    frame = len(b"a datagram") + 4 + 32
    one, two = taken.recv(frame), taken.recv(frame)
    assert len(one) == len(two) == frame
    if attack == "echoed":
        near._sock = sockets[0]
        sockets[1].sendall(one)
        with pytest.raises(Stranger, match="MAC"):
            near.receive()
        return
    sockets[0].sendall({"changed": one.replace(b"a d", b"b d"), "again": one + one, "skipped": two}[attack])
    if attack == "again":
        assert far.receive() == b"a datagram"
    with pytest.raises(Stranger, match="MAC"):
        far.receive()


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 400, struct.pack(">I", 2**31), struct.pack(">I", 4) + b"null", b""]
)
def test_garbage_is_a_stranger(sockets: tuple[socket.socket, socket.socket], garbage: bytes) -> None:
    sockets[0].sendall(garbage)
    sockets[0].shutdown(socket.SHUT_WR)
    with pytest.raises(Stranger):
        tunnel.answer(sockets[1], TOKEN)


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (b"x" * 15, 0o600, "is 15 bytes, and a token has 16 to 4096 bytes"),
        (b"x" * 5000, 0o600, "is larger"),
        (b"x" * 16, 0o640, "mode 0640"),
        (None, 0, "cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_secret_is_no_token(tmp_path: Path, content: bytes | None, mode: int, sentence: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ValueError) as error:
        read_token(path)
    assert sentence in str(error.value)
    path.write_bytes(TOKEN)
    path.chmod(0o600)
    assert read_token(path) == TOKEN


def test_the_store_does_what_torchs_own_does(tmp_path: Path) -> None:
    store_server.serve(tmp_path / "store")
    answers = []
    for store in (dist.HashStore(), dist.PrefixStore("p/", NodeStore(tmp_path))):
        store.set("bytes", b"\xff\0")
        answers.append([
            store.get("bytes"), store.add("n", 2), store.add("n", -5), store.get("n"), store.check(["n", "none"]),
            store.compare_set("c", "", "new"), store.compare_set("c", "old", "newer"),
            store.compare_set("c", "new", "newest"), store.multi_get(["c", "n"]), store.delete_key("c"),
            store.delete_key("c"), store.check(["c"]),
        ])  # fmt: skip
    assert answers[0] == answers[1]


def test_the_store_waits_for_another_and_forgets_old_generations(tmp_path: Path) -> None:
    store_server.serve(tmp_path / "store")
    store, other = NodeStore(tmp_path), NodeStore(tmp_path)
    late = threading.Timer(0.7, lambda: other.set("late", b"here"))  # longer than one answer takes
    late.start()
    assert store.get("late") == b"here"
    late.join()
    for key in ("generation/1/a", "generation/2/a", "rendezvous"):
        store.set(key, b"x")
    store.keep("generation/", "generation/2/")
    assert [other.check([key]) for key in ("generation/1/a", "generation/2/a", "rendezvous")] == [False, True, True]
