"""Real process groups with the toy engine: two ranks under torchrun, and the faults of a night in production."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ToyGroup, alive, cpu_seconds, descendants, listeners, run_dir, until

STEPS = 5


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ToyGroup]]:
    """Three, which start side by side."""
    kinds = {
        "steady": {},
        "mortal": {"TOY_PAGE_ERROR": str(tmp_path_factory.mktemp("error") / "once")},
        "impatient": {"TOY_GROUP_TIMEOUT": "2"},
    }
    with contextlib.ExitStack() as stack:
        made = {}
        for name, env in kinds.items():
            made[name] = ToyGroup(tmp_path_factory.mktemp(name), env=env)
            stack.callback(made[name].end)
        for one in made.values():
            until(one.ready, 240)
        yield made


@pytest.fixture(scope="module")
def group(groups: dict[str, ToyGroup]) -> ToyGroup:
    """For all tests that leave it alive."""
    return groups["steady"]


@pytest.fixture(scope="module")
def mortal(groups: dict[str, ToyGroup]) -> ToyGroup:
    """For all tests that kill its ranks. Its page could not open at the first start."""
    return groups["mortal"]


@pytest.fixture(scope="module")
def rested(groups: dict[str, ToyGroup]) -> tuple[ToyGroup, float]:
    """A group whose collectives time out after 2 s, and when it has made its last picture."""
    assert groups["impatient"].make()["state"] == "done"
    return groups["impatient"], time.monotonic()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyGroup]:
    """A group by plain torchrun that is about to start: whoever needs it waits until it is ready."""
    made = ToyGroup(tmp_path_factory.mktemp("plain"), standalone=True)
    yield made
    made.end()


@pytest.fixture(scope="module")
def picture(group: ToyGroup) -> bytes:
    """What an undisturbed run makes."""
    return Path(group.make(steps=STEPS)["picture"]).read_bytes()


def same(group: ToyGroup, picture: bytes) -> bool:
    """Whether the next picture is what an undisturbed run makes."""
    return Path(group.make(steps=STEPS)["picture"]).read_bytes() == picture


@pytest.mark.usefixtures("rested")  # from here on it rests
def test_a_picture_and_its_report(group: ToyGroup) -> None:
    update = group.make(steps=STEPS)
    assert (update["state"], update["attempt"], update["phases"]) == ("done", 1, "SSddd")
    assert update["states"][-1] == "done"
    report = update["report"]
    assert set(report) == {
        "request", "config", "model", "device", "ranks", "threads_per_rank", "startup_seconds", "seconds", "steps",
        "memory_mb", "buffer_mb", "load_percent", "image",
    }  # fmt: skip
    assert sum(report["seconds"][name] for name in ("text", "denoise", "decode", "save")) == pytest.approx(
        report["seconds"]["total"], abs=1e-5
    )
    assert [(step["step"], len(step["ranks"])) for step in report["steps"]] == [(n, 2) for n in range(STEPS)]
    picture = Path(report["image"])
    assert (picture.parent.name, picture.name) == ("pictures", f"{update['id']}.png")
    assert picture.parent.stat().st_mode & 0o777 == 0o700
    assert [lane["box"] for lane in update["lanes"]] == [[0, 0, 64, 32], [0, 32, 64, 64]]
    assert update["preview"].startswith("data:image/jpeg;base64,")
    assert group.call("history", visitor="v")[0]["id"] == update["id"]


def test_every_listener_of_the_group_is_on_loopback(group: ToyGroup) -> None:
    group.make()
    assert listeners([group.process.pid, *descendants(group.process.pid)]) == {"127.0.0.1"}


@pytest.mark.parametrize("step", [-1, 0, 2, STEPS - 1, STEPS])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_is_reported_and_the_same_processes_go_on(
    group: ToyGroup, picture: bytes, rank: int, step: int
) -> None:
    before = group.pids()
    update = group.make(f"fail rank={rank} step={step};", steps=STEPS)
    assert update["state"] == "failed"
    assert update["message"] == f"rank {rank}: RuntimeError: toy fault on rank {rank} at step {step}"
    assert same(group, picture)
    assert group.pids() == before
    assert group.call("status")["restarts"] == 0


def test_every_process_writes_down_what_it_does_and_for_which_request(group: ToyGroup) -> None:
    failed, done = group.make("fail rank=1 step=2; secret")["id"], group.make("secret")["id"]
    lines = {path.stem: path.read_text().splitlines() for path in run_dir(group.pids()[0]).glob("logs/*.log")}
    assert set(lines) == {"agent", "zygote-0", "zygote-1", "rank-0", "rank-1"}
    for name, one in lines.items():
        form = rf"2[-0-9]+T[:0-9]+\.\d{{3}} [A-Z]+ {name}\[\d+\] (-|[-0-9a-f]{{24}}) .*"  # of tracebacks, too
        assert one
        assert [line for line in one if not re.fullmatch(form, line)] == []
        assert not any("secret" in line for line in one)
    for rank in ("rank-0", "rank-1"):
        assert any(f" {done} done after step 5" in line for line in lines[rank])
    assert any(f" {failed} RuntimeError: toy fault on rank 1 at step 2" in line for line in lines["rank-1"])
    assert [line.split(f" {done} ")[1] for line in lines["rank-0"] if f" {done} " in line][:2] == [
        "accepted: 64 x 64, 6 steps",
        "try: attempt 1",
    ]


@pytest.mark.parametrize("moment", [0.0, 0.03, 0.08, 0.13, 0.2])
def test_stop_ends_at_one_step_and_the_next_picture_is_unharmed(group: ToyGroup, picture: bytes, moment: float) -> None:
    req = group.submit("slow 30", steps=30)
    time.sleep(moment)
    for _ in range(3):
        group.call("cancel", req=req)
    update = group.call("wait", req=req)
    assert update["state"] == "cancelled"
    assert len({lane["step"] for lane in update["lanes"]}) == 1
    assert update["message"] == f"Stopped at step {update['step']}. Your prompt and seed are kept."
    assert same(group, picture)


def test_a_picture_that_ends_early_and_one_stopped_before_that(group: ToyGroup, picture: bytes) -> None:
    update = group.make("stride 4", steps=10)
    assert (update["state"], update["step"], update["phases"]) == ("done", 10, "SSd")
    assert [len(lane["history"]) for lane in update["lanes"]] == [3, 3]
    req = group.submit("slow 100 stride 4", steps=40)
    until(lambda: group.call("now", req=req)["step"] > 1)
    group.call("cancel", req=req)
    update = group.call("wait", req=req)
    assert (update["state"], update["step"] % 4, len({lane["step"] for lane in update["lanes"]})) == ("cancelled", 0, 1)
    assert update["message"] == f"Stopped at step {update['step']}. Your prompt and seed are kept."
    assert same(group, picture)


@pytest.mark.usefixtures("plain")  # it starts meanwhile
def test_an_idle_peer_sleeps_and_wakes_quickly(group: ToyGroup) -> None:
    group.make()
    peer = group.pids()[1]
    time.sleep(3)  # the group's own threads end 2 s after the last picture
    before = cpu_seconds(peer)
    time.sleep(10)
    assert 0 <= cpu_seconds(peer) - before < 0.01  # 0.1 %
    assert group.make()["lanes"][1]["history"][0][1] < 500  # the first step waits for nobody who sleeps


def test_pictures_are_made_one_after_another(group: ToyGroup) -> None:
    ids = [group.submit("slow 30", steps=3, visitor="queue") for _ in range(3)]
    assert group.call("running", visitor="queue") == ids
    assert [group.call("wait", req=req)["state"] for req in ids] == ["done"] * 3
    assert [record["id"] for record in group.call("history", visitor="queue")] == ids[::-1]


def test_group_timeouts_do_not_matter_to_an_idle_group_which_says_one_line(rested: tuple[ToyGroup, float]) -> None:
    group, since = rested
    time.sleep(max(0.0, since + 6 - time.monotonic()))
    assert group.make()["state"] == "done"
    assert group.call("status")["restarts"] == 0
    assert group.log.read_text() == f"DistriFusion Live: http://127.0.0.1:{group.port} (2 ranks)\n"


def test_a_page_that_cannot_open_is_tried_again(mortal: ToyGroup) -> None:
    status = mortal.call("status")
    assert (status["restarts"], status["last_error"]) == (1, "rank 0 failed: OSError: no page at the first start")


def test_killed_ranks_come_back_and_the_picture_is_made_after_all(mortal: ToyGroup, picture: bytes) -> None:
    assert same(mortal, picture)
    for rank in (1, 0):
        history = mortal.call("history", visitor="v")
        req = mortal.submit("slow 100", steps=20)
        until(lambda req=req: mortal.call("now", req=req)["step"] > 1)
        os.kill(mortal.pids()[rank], signal.SIGKILL)
        update = mortal.wait_across_restarts(req)
        assert (update["state"], update["attempt"]) == ("done", 2)
        assert mortal.call("history", visitor="v")[1:] == history
        status = mortal.call("status")
        assert status["last_error"].startswith(f"rank {rank} stopped answering")
        assert same(mortal, picture)
    assert mortal.call("status")["restarts"] == 1 + 2
    history = mortal.call("history", visitor="v")
    os.kill(mortal.pids()[1], signal.SIGKILL)  # idle, so that nothing is lost but time
    until(lambda: restarted(mortal, 1 + 3), 60)
    assert mortal.call("history", visitor="v") == history
    assert same(mortal, picture)


def restarted(group: ToyGroup, times: int) -> bool:
    """Whether the group has been started again that often, and works."""
    with contextlib.suppress(OSError, http.client.HTTPException):  # it may die between the two
        return group.ready() and group.call("status")["restarts"] == times
    return False


def test_what_kills_the_group_twice_is_given_up(mortal: ToyGroup, picture: bytes) -> None:
    update = mortal.wait_across_restarts(mortal.submit("kill rank=1 step=1;"))
    assert (update["state"], update["message"]) == ("failed", "the group died twice while running this")
    until(mortal.ready, 60)
    assert same(mortal, picture)


def test_a_rank_lost_while_the_ranks_meet_costs_no_attempt(mortal: ToyGroup) -> None:
    time.sleep(3)  # the group rests, so that the next picture begins with a meeting
    peer = mortal.pids()[1]
    os.kill(peer, signal.SIGSTOP)
    req = mortal.submit()
    until(lambda: mortal.call("status")["state"] == "joining", 40)
    os.kill(peer, signal.SIGKILL)
    made = mortal.wait_across_restarts(req)
    assert (made["state"], made["attempt"]) == ("done", 1)


def gone_without_its_agent(group: ToyGroup) -> None:
    """Kill torchrun, and see that all its processes go with it."""
    pids = descendants(group.process.pid)
    assert len(pids) >= 2
    group.submit("slow 100", steps=50)
    group.process.kill()
    until(lambda: not any(map(alive, pids)), 20)


def test_ending_the_program_leaves_nothing_and_the_next_one_makes_the_picture(tmp_path: Path, short_tmp: Path) -> None:
    env = {"TMPDIR": str(short_tmp)}
    req = ""
    for how in (signal.SIGINT, signal.SIGTERM):
        with ToyGroup(tmp_path, env=env, wait_for="running" if req else "idle") as group:
            pids = descendants(group.process.pid)
            req = req or group.submit("slow 100", steps=50)
            until(lambda group=group, req=req: group.call("now", req=req)["step"] > 1)
            assert len(list(short_tmp.iterdir())) == 1
            (tmp_path / "data" / "pictures").mkdir(exist_ok=True)
            (tmp_path / "data" / "pictures" / ".x.png.part-1").write_text("as if it was being saved")
            told = [group.process.pid, *pids] if how is signal.SIGINT else [group.process.pid]  # as a terminal does
            for pid in told:
                with contextlib.suppress(ProcessLookupError):  # its parent was told first
                    os.kill(pid, how)
            assert group.process.wait(60) == 128 + how
            assert not any(map(alive, pids))
            assert len(group.log.read_text().splitlines()) == 1
            assert list(short_tmp.iterdir()) == []
            assert {path.name for path in (tmp_path / "data").rglob("*")} == {"journal.jsonl", "pictures"}
    with ToyGroup(tmp_path, env=env, wait_for="running") as group:
        made = group.call("wait", req=req)
        assert (made["state"], made["attempt"]) == ("done", 1)  # ended twice on purpose, and that is nobody's fault


def test_plain_torchrun_works_warns_once_restarts_and_leaves_nobody(plain: ToyGroup, picture: bytes) -> None:
    until(plain.ready, 180)
    assert same(plain, picture)
    req = plain.submit("slow 100", steps=20)
    os.kill(plain.pids()[1], signal.SIGKILL)
    assert plain.wait_across_restarts(req)["attempt"] == 2
    assert plain.log.read_text().count("plain torchrun's rendezvous listens on all interfaces") == 1
    gone_without_its_agent(plain)
