"""The client and the hub's loop in one process: scripted ranks on real sockets, strangers, and readers on threads."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import messages as m
from launcher import wire
from launcher.client import MAX_WAITING, Client
from launcher.hub import Hub
from launcher.hub_io import HubLoop
from launcher.journal import Journal
from launcher.prometheus import Metrics
from launcher.schema import Refused
from tests.support.processes import until
from tests.support.ranks import ScriptedRank

REQUEST = GenerationRequest(prompt="x", steps=4)
CONFIG = DistriConfig(split_batch=False)


class Bench:
    """A hub's loop on a socket in `folder`, with a client; `died` collects reasons instead of ending the process."""

    def __init__(self, folder: Path, world: int = 2) -> None:
        self.path = folder / "hub"
        self.died: list[str] = []
        self.world = world
        loop = HubLoop(
            Hub(world=world, nonce="n", started=time.monotonic()),
            Journal(folder / "data"),
            wire.listen(self.path),
            die=self.died.append,
        )
        loop.start()
        self.loop, self.client = loop, Client(loop)
        self.socks: list[socket.socket] = []
        self.paused = threading.Event()

    def connect_ranks(self) -> Bench:
        """Ranks on threads that answer everything at once, until `paused` is set."""
        for index in range(self.world):
            rank, sock = ScriptedRank(index, self.world), wire.connect(self.path, 5)
            self.socks.append(sock)
            hello = rank.hello()
            wire.send(sock, {**hello.frame(), "pid": os.getpid(), "default_size": 64})
            threading.Thread(target=self._answer, args=[rank, sock], daemon=True).start()
        assert self.client.wait_ready(10)
        return self

    def _answer(self, rank: ScriptedRank, sock: socket.socket) -> None:
        while (frame := self._frame(sock)) is not None:
            rank.inbox.append(m.parse(frame, m.TO_RANK))
            while not self.paused.is_set() and (message := rank.act(time.monotonic())) is not None:
                wire.send(sock, message.frame())

    def _frame(self, sock: socket.socket) -> dict[str, object] | None:
        try:
            return wire.receive(sock)
        except OSError:
            return None  # closed by the test

    def close(self) -> None:
        for sock in self.socks:
            wire.close(sock)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_submit_follow_look_up(bench: Bench) -> None:
    client = bench.connect_ranks().client
    req = client.submit(REQUEST, CONFIG, visitor="v", comparison="c")
    updates = list(client.updates(req, interval=0))
    assert updates[-1].state == "done"
    assert updates[-1].request["seed"] is not None
    assert (updates[-1].request["height"], updates[-1].config["height"]) == (64, 64)
    record = client.history(visitor="v")[0]
    assert (record.id, record.state, record.comparison, record.picture) == (req, "done", "c", "/x.png")
    assert client.history(visitor="w") == []
    assert client.running(visitor="v") == []
    assert len(list(client.updates(req))) == 1
    with pytest.raises(ValueError, match="no request"):
        list(client.updates("unknown"))


def test_nothing_is_accepted_before_the_model_is_known(bench: Bench) -> None:
    with pytest.raises(Refused, match="loading"):
        bench.client.submit(REQUEST, CONFIG)
    assert not bench.client.wait_ready(0.05)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"height": 32}, "2 ranks cannot share 1 units of rows"),
        ({"height": 8192, "width": 8192}, "8192 x 8192 is 67108864 pixels, the limit is 16777216; make it smaller"),
        ({"height": 2048, "width": 2048, "images": 5}, "5 x 2048 x 2048 is 20971520 pixels, the limit is 16777216"),
        ({"prompt": "\ud800"}, "prompt holds half a character"),
    ],
)
def test_what_cannot_work_here_is_refused_with_a_sentence(
    bench: Bench, changes: dict[str, object], sentence: str
) -> None:
    bench.connect_ranks()
    with pytest.raises(ValueError, match=sentence):
        bench.client.submit(REQUEST.replace(**changes), CONFIG)
    assert bench.client.status().state == "idle"
    assert bench.client.history() == []


def test_a_full_queue_refuses_and_leaving_it_makes_room(bench: Bench) -> None:
    client = bench.connect_ranks().client
    bench.paused.set()
    ids = [client.submit(REQUEST, CONFIG, visitor="v") for _ in range(MAX_WAITING + 1)]
    with pytest.raises(Refused, match="20 pictures are waiting"):
        client.submit(REQUEST, CONFIG)
    assert client.running(visitor="v") == ids
    client.cancel(ids[5])
    client.cancel(ids[5])
    client.cancel("unknown")
    assert [update.state for update in client.updates(ids[5])] == ["cancelled"]
    assert next(client.updates(ids[6])).position == 5
    client.submit(REQUEST, CONFIG)


def test_a_journal_that_cannot_be_written_refuses(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    client = bench.connect_ranks().client
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Refused, match="No space left on device"):
        client.submit(REQUEST, CONFIG)
    monkeypatch.undo()
    assert list(client.updates(client.submit(REQUEST, CONFIG)))[-1].state == "done"


def figures(text: bytes) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, those in the order of their labels' names."""
    samples = [one for family in text_string_to_metric_families(text.decode()) for one in family.samples]
    return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in samples}


def test_metrics_count_what_happened_and_go_on_after_a_restart(bench: Bench) -> None:
    client = bench.connect_ranks().client
    assert client.status().last_step_age is None
    before = figures(client.metrics())
    assert [before["distri_requests_total", state] for state in ("done", "cancelled", "failed")] == [0, 0, 0]
    assert list(client.updates(client.submit(REQUEST, CONFIG)))[-1].state == "done"
    bench.paused.set()
    client.submit(REQUEST, CONFIG)
    waiting = client.submit(REQUEST, CONFIG)
    client.submit(REQUEST, CONFIG)
    client.cancel(waiting)
    after = figures(client.metrics())
    assert [after["distri_requests_total", state] for state in ("done", "cancelled", "failed")] == [1, 1, 0]
    assert after["distri_queue_length",] == 1
    assert after["distri_stage_seconds_count", "patch", "text"] == 1
    assert after["distri_stage_seconds_sum", "patch", "text"] == pytest.approx(0.1)
    for rank in "01":
        assert after["distri_step_compute_seconds_count", rank] == 4
        assert after["distri_step_compute_seconds_sum", rank] == pytest.approx(4 * 0.02)
        assert after["distri_step_wait_seconds_bucket", "0.005", rank] == 4
        assert after["distri_memory_bytes", rank] == 2**20
    assert 0 <= client.status().last_step_age < 30
    again = figures(Metrics(client.history()).text(client.status()))
    assert [again["distri_requests_total", state] for state in ("done", "cancelled", "failed")] == [1, 1, 0]
    assert again["distri_stage_seconds_count", "patch", "denoise"] == 1


def test_an_unchanged_state_is_repeated_so_that_a_reader_can_be_closed(bench: Bench) -> None:
    client = bench.connect_ranks().client
    bench.paused.set()
    updates = client.updates(client.submit(REQUEST, CONFIG))
    first, second = next(updates), next(updates)
    assert (first.state, second.state) == ("starting", "starting")
    updates.close()


def test_a_final_state_is_seen_at_once(bench: Bench) -> None:
    client = bench.connect_ranks().client
    begin = time.monotonic()
    *early, last = client.updates(client.submit(REQUEST, CONFIG), interval=30.0)
    assert last.final
    assert time.monotonic() - begin < 25
    assert len(early) <= 1  # and others not before their time, which is
    assert Client.updates.__kwdefaults__ == {"interval": 0.2}  # five a second at most


class Bomb:
    """What unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_strangers_on_the_socket_change_nothing(bench: Bench, tmp_path: Path) -> None:
    hello = {**ScriptedRank(1, 2).hello().frame(), "pid": os.getpid()}
    frames = [
        b"\x00" * 100,
        b"x" * 200_000,
        pickle.dumps(Bomb(tmp_path / "bomb")),
        wire.encode(m.Ready(gen="n-1").frame()),
        wire.encode({**hello, "pid": 1}),
        wire.encode({**hello, "rank": 7}),
    ]
    for data in frames:
        sock = wire.connect(bench.path, 5)
        sock.send(data)
        assert wire.receive(sock) is None, data[:40]
    bench.connect_ranks()
    sock = wire.connect(bench.path, 5)
    wire.send(sock, hello)  # the place of rank 1 is taken
    assert wire.receive(sock) is None
    silent = wire.connect(bench.path, 5)
    assert list(bench.client.updates(bench.client.submit(REQUEST, CONFIG)))[-1].state == "done"
    silent.close()
    assert not bench.died
    assert not (tmp_path / "bomb").exists()


def test_a_rank_that_goes_away_ends_the_group(bench: Bench) -> None:
    bench.connect_ranks()
    bench.paused.set()
    req = bench.client.submit(REQUEST, CONFIG)
    wire.close(bench.socks[1])
    until(lambda: bench.died, 40)
    assert bench.died[0].startswith("rank 1 stopped answering")
    assert next(bench.client.updates(req)).state == "lost"
    with pytest.raises(Refused):
        bench.client.submit(REQUEST, CONFIG)


def test_a_rank_that_talks_nonsense_ends_the_group(bench: Bench) -> None:
    bench.connect_ranks()
    bench.socks[0].send(b"nonsense")
    until(lambda: bench.died, 40)
    assert "bad frame" in bench.died[0]
