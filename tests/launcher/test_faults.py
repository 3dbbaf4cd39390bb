"""Faults on purpose: what the variable takes and refuses, and groups with the toy engine that live through them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import faults
from launcher.options import parse
from tests.support.processes import ToyGroup


@pytest.mark.parametrize("text", ["die", "die:1", "jump:1@2", "die:1@2,twice", "die:-1@2", "die:1@2 slow:1@2", ";"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not KIND:RANK@STEP.*kinds: die, raise, stop, slow, garbage"):
        faults.planned({faults.VARIABLE: text})


def test_faults_of_several_ranks() -> None:
    plan = faults.planned({faults.VARIABLE: "die:1@6,once; raise:0@-1"})
    assert [(one.kind, one.rank, one.step, one.once) for one in plan] == [("die", 1, 6, True), ("raise", 0, -1, False)]
    assert faults.planned({}) == ()


def test_faults_are_refused_where_there_are_guests(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(faults.VARIABLE, "die:1@6,once")
    parse([])
    monkeypatch.setenv("SPACE_ID", "me/space")
    with pytest.raises(SystemExit) as end:
        parse([])
    assert end.value.code == 2
    assert "DISTRI_FAULT is for tests" in capsys.readouterr().err


def test_every_kind_of_fault_costs_what_it_must_and_no_more(tmp_path: Path) -> None:
    plan = "slow:1@0,once;raise:1@1,once;die:1@2,once;garbage:0@3,once;stop:1@4,once"
    with ToyGroup(tmp_path, env={faults.VARIABLE: plan}) as group:
        pids = group.pids()
        slow = group.make(steps=1)  # slower than any step before, and not taken for dead
        assert (slow["state"], slow["attempt"]) == ("done", 1)
        assert slow["lanes"][1]["history"][0][0] < 1000 * faults.SLOW_S  # it is no part of the step
        failed = group.make(steps=2)
        assert failed["message"] == "rank 1: RuntimeError: DISTRI_FAULT asked for this after step 1"
        assert group.pids() == pids
        # Of a rank that is stopped, its parent knows why; the hub, which counts seconds, may be quicker.
        stopped = ("rank 1 was stopped (SIGSTOP)", "one of the ranks 0, 1 stopped")
        dead = (
            "rank 1 stopped answering",
            "rank 1 takes no messages",
        )  # as the hub reads from it first, or writes to it
        losses = {3: dead, 4: "rank 0 sent a bad frame", 6: stopped}
        for steps, reason in losses.items():
            made = group.wait_across_restarts(group.submit(steps=steps), 60)
            assert (made["state"], made["attempt"]) == ("done", 2)
            assert group.call("status")["last_error"].startswith(reason)
        assert group.call("status")["restarts"] == 3
        assert [one["state"] for one in group.call("history", visitor="v")] == ["done"] * 3 + ["failed", "done"]
