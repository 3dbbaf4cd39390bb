"""The processes that fork the ranks: what they refuse to fork, whom they listen to, and what they say of a death."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from launcher import losses, wire, zygote
from launcher.start import RUN_DIR
from tests.support.processes import ToyGroup, children, until


def test_threads_and_cuda_do_not_survive_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    threading.Thread(target=over.wait).start()
    with pytest.raises(RuntimeError, match="threads before the fork"):
        zygote.check_forkable()
    over.set()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA was initialised before the fork"):
        zygote.check_forkable()


@pytest.mark.parametrize(
    ("note", "ends", "said"),
    [
        ("", {1: -9, 0: None}, "rank 1 was killed by signal 9"),
        ("", {0: 4, 1: -11}, "rank 1 was killed by signal 11"),
        ("", {1: 3, 0: 4}, "rank 1 ended with exit code 3"),
        ("", {0: None, 1: None}, "rank 0 had to be killed"),
        ("rank 1 stopped answering", {0: 4, 2: -6, 1: -9}, "rank 1 stopped answering: it was killed by signal 9"),
        ("rank 1 stopped answering", {0: 4, 1: None}, "rank 1 stopped answering"),
        ("rank 0 failed: no page", {0: 4, 1: 4}, "rank 0 failed: no page"),
        ("the hub failed", {0: 4, 1: 1}, "the hub failed"),
    ],
)
def test_a_death_has_a_name_and_a_cause(tmp_path: Path, note: str, ends: dict[int, int | None], said: str) -> None:
    if note:
        losses.note_loss(tmp_path, 6, note)
        losses.note_loss(tmp_path, 6, "somebody else's later opinion")
    losses.note_ends(tmp_path, 6, ends)
    assert losses.last_loss(tmp_path, 7) == said
    assert losses.last_loss(tmp_path, 8) == ""


def test_generations_are_counted_until_a_new_run_begins(tmp_path: Path) -> None:
    assert [losses.next_generation(tmp_path) for _ in range(3)] == [0, 1, 2]
    losses.note_loss(tmp_path, 2, "old")
    losses.note_start(tmp_path, 2)
    losses.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_rank_costs_no_zygote_and_a_killed_zygote_no_picture(tmp_path: Path) -> None:
    with ToyGroup(tmp_path) as group:
        zygotes, ranks = sorted(children(group.process.pid)), group.pids()
        for name, value in {"hub": b"x", "zygotes": b'{"rank":1,"end":0}'}.items():  # strangers come and go
            with wire.connect(run_dir(ranks[0]) / name, 5) as sock, contextlib.suppress(BrokenPipeError):
                sock.send(value)
        assert group.make()["attempt"] == 1
        os.kill(ranks[0], signal.SIGKILL)
        assert group.wait_across_restarts(group_again(group, 1))["attempt"] == 1
        assert sorted(children(group.process.pid)) == zygotes
        req = group.submit("slow 100", steps=20)
        until(lambda: group.call("now", req=req)["step"] > 1)
        os.kill(zygotes[1], signal.SIGKILL)
        assert group.wait_across_restarts(req, 90)["attempt"] == 2
        assert group.call("status")["restarts"] == 2
        assert not set(zygotes) & set(children(group.process.pid))


def run_dir(pid: int) -> Path:
    """The run directory of the group that a process belongs to."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next(Path(word.partition("=")[2]) for word in words if word.startswith(f"{RUN_DIR}="))


def group_again(group: ToyGroup, restarts: int) -> str:
    """A picture that is asked for after so many restarts."""
    until(lambda: group.ready() and group.call("status")["restarts"] == restarts, 60)
    return group.submit()
