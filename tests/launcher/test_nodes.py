"""One group over two nodes, which are two loopback addresses: the same picture, and nobody else gets a say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.gang import run_on_ranks
from tests.support.processes import TOY_APP, ToyGroup, descendants, end, listeners, toy_model, until

STEPS = 5


class TwoNodes(ToyGroup):
    """Node 0 as a ToyGroup, and node 1 beside it. They declare different hosts."""

    expected: bytes

    def __init__(self, folder: Path) -> None:
        self.token = secret(folder / "token")
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
            self.address = probe.getsockname()
        self.second = self.node_1(folder, self.token)
        super().__init__(folder, ranks=1, env={"DISTRI_HOST_ID": "node 0"}, options=self.options(0, self.token))

    def options(self, rank: int, token: Path) -> list[str]:
        where = "{}:{}".format(*self.address)
        return ["--nnodes", "2", "--node-rank", str(rank), "--rdzv", where, "--token-file", str(token)]

    def node_1(self, folder: Path, token: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(TOY_APP), "--ranks", "1", "--device", "cpu", "--model", str(toy_model(folder))]
        with (folder / "node_1.txt").open("wb") as log:
            return subprocess.Popen(
                [*command, *self.options(1, token)],
                env={**os.environ, "DISTRI_HOST_ID": "node 1", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def end(self) -> None:
        """Kill everything on both nodes."""
        super().end()
        end(self.second, [self.second.pid, *descendants(self.second.pid)])


def secret(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(os.urandom(32))
    return path


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    made, one = TwoNodes(tmp_path_factory.mktemp("nodes")), ToyGroup(tmp_path_factory.mktemp("one"))
    with made:
        with one:
            made.expected = Path(one.make(steps=STEPS)["picture"]).read_bytes()
        yield made


@pytest.fixture
def picture(nodes: TwoNodes) -> bytes:
    """What two ranks on one node make."""
    return nodes.expected


def test_two_nodes_make_the_picture_of_one(nodes: TwoNodes, picture: bytes) -> None:
    update = nodes.make(steps=STEPS)
    assert (update["state"], update["attempt"]) == ("done", 1)
    assert Path(update["picture"]).read_bytes() == picture
    pids = nodes.pids()
    assert pids[0] in descendants(nodes.process.pid)
    assert pids[1] in descendants(nodes.second.pid)


def test_listeners_are_the_named_address_and_loopback(nodes: TwoNodes) -> None:
    nodes.make(steps=STEPS)
    assert listeners([nodes.process.pid]) == {"127.0.0.2"}  # the agent, on no other
    assert listeners(descendants(nodes.process.pid)) == {"127.0.0.1"}  # the page and gloo
    assert listeners([nodes.second.pid, *descendants(nodes.second.pid)]) <= {"127.0.0.1"}


def test_strangers_and_other_tokens_change_nothing(nodes: TwoNodes, tmp_path: Path, picture: bytes) -> None:
    pids = nodes.pids()
    with ExitStack() as open_ones:
        for garbage in (b"", b"\x80\x04cos\nsystem\n(S'false'\ntR.", os.urandom(70_000), b"GET / HTTP/1.1\r\n\r\n"):
            stranger = open_ones.enter_context(socket.create_connection(nodes.address))
            with suppress(ConnectionError, BrokenPipeError):
                stranger.sendall(garbage)
        other = nodes.node_1(tmp_path, secret(tmp_path / "other"))
        twin = nodes.node_1(tmp_path_of(tmp_path, "twin"), nodes.token)
        try:
            assert other.wait(90) == 1
            assert twin.wait(90) == 1
        finally:
            for process in (other, twin):
                end(process, [process.pid, *descendants(process.pid)] if process.poll() is None else [])
        assert Path(nodes.make(steps=STEPS)["picture"]).read_bytes() == picture
    said = (tmp_path / "node_1.txt").read_text().splitlines()
    assert len(said) == 1
    assert "do not trust each other" in said[0]
    said = (tmp_path / "twin" / "node_1.txt").read_text().splitlines()
    assert len(said) == 1
    assert "there is no free place for node 1" in said[0]
    assert nodes.pids() == pids
    token = nodes.token.read_bytes()
    assert token.hex() not in nodes.log.read_text()
    assert token not in nodes.log.read_bytes()


def tmp_path_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def test_a_rank_lost_on_the_other_node_comes_back(nodes: TwoNodes, picture: bytes) -> None:
    req = nodes.submit("slow 300", steps=STEPS)
    until(lambda: nodes.call("now", req=req)["state"] == "running", 60)
    os.kill(nodes.pids()[1], signal.SIGKILL)
    update = nodes.wait_across_restarts(req, 120)
    assert (update["state"], update["attempt"]) == ("done", 2)
    until(nodes.ready, 60)
    assert Path(nodes.make(steps=STEPS)["picture"]).read_bytes() == picture


def test_a_lost_node_comes_back_when_it_is_started_again(nodes: TwoNodes, picture: bytes) -> None:
    req = nodes.submit("slow 300", steps=STEPS)
    until(lambda: nodes.call("now", req=req)["state"] == "running", 60)
    ranks = descendants(nodes.second.pid)
    nodes.second.kill()
    end(nodes.second, ranks)
    nodes.second = nodes.node_1(nodes.folder, nodes.token)
    update = nodes.wait_across_restarts(req, 180)
    assert (update["state"], update["attempt"]) == ("done", 2)


def links_and_sum(hosts: list[str]) -> tuple[bool, list[float]]:
    import torch

    from distri_engine.config import DistriConfig
    from distri_engine.mesh import current_rank, open_mesh

    os.environ["DISTRI_HOST_ID"] = hosts[current_rank()]
    with open_mesh(DistriConfig(use_cuda_graph=False), device="cpu") as mesh:
        total = mesh.all_reduce(torch.arange(5.0) * (mesh.rank + 1), range(mesh.size))
        return mesh.has_boards, total.tolist()


def test_shared_memory_is_for_one_host_alone() -> None:
    here, there = "x" * 64 + "1", "x" * 64 + "2"
    assert run_on_ranks(2, links_and_sum, [here, here]) == [(True, [0, 3, 6, 9, 12])] * 2
    assert run_on_ranks(2, links_and_sum, [here, there]) == [(False, [0, 3, 6, 9, 12])] * 2
