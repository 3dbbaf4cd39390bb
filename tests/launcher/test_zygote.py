"""The processes that fork the ranks: what they refuse to fork, whom they listen to, and what they say of a death."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from launcher import losses, pulse, zygote
from launcher.start import Place
from tests.support.processes import until


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


def test_a_machine_without_room_for_a_process_is_waited_for_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(rank=3, world_size=4, restarts=0, run_dir=tmp_path, guarded=True)
    for name in ("signal", "set_wakeup_fd"):
        monkeypatch.setattr(signal, name, lambda *_: None)
    monkeypatch.setattr(zygote, "check_forkable", lambda: None)
    monkeypatch.setattr(zygote, "PAUSES_S", (0.0, 0.0, 0.01))
    full = iter([True] * 9)

    def fork() -> int:
        if next(full, False):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return subprocess.Popen(["sleep", "60"]).pid

    monkeypatch.setattr(os, "fork", fork)
    nursery = zygote.Nursery(place, lambda *_: None)
    nursery.fork(0)
    assert nursery.bury(patience=0) is None  # there is one to be killed
    (line,) = caplog.messages
    assert line == "rank 3 cannot be started: Resource temporarily unavailable; trying until that is over"


def test_a_rank_is_given_up_for_standing_still_and_for_nothing_else() -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        alive = pulse.Pulse()
        assert not any(alive.look(process.pid) for _ in range(2 * pulse.SILENT))  # who never beats need not
        for _ in range(2 * pulse.SILENT):
            alive.beat()
            assert not alive.look(process.pid)
        assert not any(alive.look(process.pid) for _ in range(pulse.SILENT - 1))
        alive.beat()  # slow, and not lost
        assert not any(alive.look(process.pid) for _ in range(pulse.SILENT))
        assert alive.look(process.pid) == "gave no sign of life for 120 s"
        alive.beat()
        process.send_signal(signal.SIGSTOP)
        until(lambda: pulse.state_of(process.pid) == "T")
        assert not any(alive.look(process.pid) for _ in range(pulse.STOPPED - 1))
        process.send_signal(signal.SIGCONT)
        until(lambda: pulse.state_of(process.pid) == "S")
        assert not alive.look(process.pid)
        process.send_signal(signal.SIGSTOP)
        until(lambda: pulse.state_of(process.pid) == "T")
        looks = [alive.look(process.pid) for _ in range(pulse.STOPPED)]
        assert looks == ["", "", "was stopped (SIGSTOP) and did not go on"]
    finally:
        process.kill()
        process.wait()
