"""The hub's states: every way through a picture, and every fault that must not get further than it has to."""

from __future__ import annotations

import random

import pytest

from launcher import messages as m
from launcher.events import Heard, Lost, Previewed, Stop, Submitted
from launcher.job import FINAL
from tests.support.ranks import ScriptedGroup, make_job


def test_a_picture_from_the_queue_to_the_history() -> None:
    group = ScriptedGroup()
    assert group.hub.status().state == "boot"
    assert group.hub.status().model is None
    group.boot()
    assert group.hub.status().state == "idle"
    job = group.submit(make_job())
    assert group.hub.update(job.id).message == "Waking the peers"
    group.settle()
    update = group.hub.update(job.id)
    assert (update.state, update.step, update.phases, update.picture) == ("done", 4, "SSSS", "/x.png")
    assert update.report is not None
    assert [len(step["ranks"]) for step in update.report["steps"]] == [2] * 4
    assert update.changes == pytest.approx((None, 0.15, 0.15, 0.15))
    assert [rank["change"] for rank in update.report["steps"][3]["ranks"]] == [0.1, 0.2]
    assert group.entries(job.id) == ["try", "finished"]
    assert group.hub.state == "idle"


@pytest.mark.parametrize(("stride", "iterations"), [(2, 5), (3, 3), (8, 2), (9, 1), (50, 1)])
def test_a_picture_may_need_fewer_steps_than_it_has_timesteps(stride: int, iterations: int) -> None:
    group = ScriptedGroup(3, stride=stride).boot()
    job = make_job(steps=9)
    job.config["parallelism"] = "paradigms"
    group.submit(job)
    while job.converged < stride and job.converged < 9:
        group.turn()
    update = group.hub.update(job.id)
    if update.state == "running":  # three timesteps in 21 ms are 7 ms each
        pace = 21 / stride
        assert update.message == f"Step {stride} / 9 · {pace:.0f} ms/step · {pace * (9 - stride) / 1000:.1f} s left"
    group.settle()
    update = group.hub.update(job.id)
    assert (update.state, update.step, update.phases) == ("done", 9, "S" * iterations)
    assert [(lane.step, len(lane.history)) for lane in update.lanes] == [(9, iterations)] * 3
    assert update.report is not None
    assert len(update.report["steps"]) == iterations
    assert update.report["picard"] == {"iterations": iterations, "evaluations": 3 * iterations * stride}
    assert not group.died
    assert group.hub.state == "idle"


def test_a_decode_that_not_every_rank_has_reached_is_not_granted() -> None:
    group = ScriptedGroup(2, stride=4).boot()
    job = group.submit(make_job(steps=4))
    while not job.ranks[0].steps and not job.ranks[1].steps:
        group.turn()
    assert job.upto == 1
    group.settle()
    assert (job.state, job.upto) == ("done", 4)


def test_requests_run_one_at_a_time_in_order() -> None:
    group = ScriptedGroup().boot()
    jobs = [group.submit(make_job(f"r-{n}")) for n in range(3)]
    assert [group.hub.update(job.id).position for job in jobs] == [0, 1, 2]
    assert group.hub.update("r-2").message == "Waiting for 2 pictures ahead"
    assert group.hub.status().queue == 2
    group.settle()
    assert [write.job.id for write in group.log if write.entry == "finished"] == ["r-0", "r-1", "r-2"]


def test_running_words_figures_and_preview() -> None:
    group = ScriptedGroup().boot()
    job = group.submit(make_job(steps=30))
    while job.finished < 16:
        group.turn()
    group.feed(Previewed(job.id, "data:x"))
    update = group.hub.update(job.id)
    assert update.message == "Step 17 / 30 · 21 ms/step · 0.3 s left"
    assert update.preview == "data:x"
    assert [lane.median_ms for lane in update.lanes] == [21.0, 21.0]


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("turns", range(40))
def test_stop_at_any_moment_leaves_all_ranks_after_the_same_step(turns: int, stride: int) -> None:
    group = ScriptedGroup(3, seed=turns, stride=stride).boot()
    job = group.submit(make_job(steps=8))
    for _ in range(turns):
        group.turn()
    for _ in range(3):  # a storm of stops changes nothing
        group.feed(Stop(job.id))
    group.settle()
    assert not group.died
    assert job.state in ("cancelled", "done")
    assert len({rank.made.get(job.id) for rank in group.ranks}) == 1
    assert job.state == "done" or max(rank.made.get(job.id, -1) for rank in group.ranks) < 8
    if job.state == "cancelled":
        made = min((group.ranks[0].made.get(job.id, -1) + 1) * stride, 8)
        assert job.message == f"Stopped at step {made}. Your prompt and seed are kept."
        assert group.entries(job.id) == ["try", "stop", "finished"]
    after = group.submit(make_job("next"))
    group.settle()
    assert after.state == "done"
    group.feed(Stop(after.id))
    assert after.state == "done"


def test_stopping_what_waits_does_not_disturb_what_runs() -> None:
    group = ScriptedGroup().boot()
    running, waiting = group.submit(make_job("a")), group.submit(make_job("b"))
    group.feed(Stop("b"))
    group.feed(Stop("unknown"))
    assert waiting.state == "cancelled"
    group.settle()
    assert running.state == "done"


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("origin", [0, 1, 2])
def test_an_exception_fails_the_request_and_the_next_one_works(step: int, origin: int) -> None:
    group = ScriptedGroup(3, seed=step).boot()
    group.ranks[origin].fail_at = step
    job = group.submit(make_job())
    group.settle()
    assert not group.died
    assert (job.state, job.message) == ("failed", f"rank {origin}: boom")
    assert group.hub.state == "idle"
    group.ranks[origin].fail_at = None
    after = group.submit(make_job("next"))
    group.settle()
    assert after.state == "done"


def test_a_rank_that_cannot_prepare_fails_the_request_and_keeps_the_group() -> None:
    group = ScriptedGroup(3).boot()
    group.ranks[1].fail_at = -1
    job = group.submit(make_job())
    group.settle()
    assert (job.state, job.message, group.hub.state) == ("failed", "rank 1: no memory", "idle")
    assert not any(isinstance(message, m.Join) for rank in group.ranks for message in rank.inbox)


def test_an_exception_on_nccl_ends_the_process_after_the_verdict() -> None:
    group = ScriptedGroup(backend="nccl").boot()
    group.ranks[0].fail_at = 1
    job = group.submit(make_job())
    group.settle()
    assert (job.state, group.entries(job.id)) == ("failed", ["try", "finished"])
    assert group.died == "rank 0: boom"


def test_a_lost_rank_ends_the_group_and_keeps_the_request() -> None:
    group = ScriptedGroup().boot()
    job = group.submit(make_job())
    while job.finished < 1:
        group.turn()
    group.feed(Lost(1, "stopped answering"))
    assert group.died == "rank 1 stopped answering at step 3"
    assert (job.state, group.entries(job.id)) == ("lost", ["try"])
    update = group.hub.update(job.id)
    assert update.message.startswith(
        "A device was lost: rank 1 stopped answering at step 3. The workers are restarting"
    )


def test_the_next_group_tries_again_and_gives_up_after_that() -> None:
    again = make_job(attempts=1)
    group = ScriptedGroup(backlog=(again, make_job("other")))
    assert group.hub.update(again.id).state == "lost"
    assert group.hub.update(again.id).attempt == 2
    group.boot()
    assert again.state == "done"
    assert group.hub.update(again.id).attempt == 2

    twice = make_job(attempts=1)
    group = ScriptedGroup(backlog=(twice,))
    for rank in group.ranks:
        group.feed(Heard(rank.rank, rank.hello()))
    while twice.finished < 0:
        group.turn()
    group.feed(Lost(0, "stopped answering"))
    assert (twice.state, twice.message) == ("failed", "the group died twice while running this")


def test_a_group_that_dies_while_stopping_does_not_try_again() -> None:
    group = ScriptedGroup().boot()
    job = group.submit(make_job())
    while job.finished < 0:
        group.turn()
    group.feed(Stop(job.id))
    group.feed(Lost(1, "stopped answering"))
    assert job.state == "cancelled"


@pytest.mark.parametrize(("lead", "who"), [(0, "one of the ranks 0, 1"), (-1, "rank 0"), (1, "rank 1")])
def test_a_rank_that_falls_silent_is_given_up_but_not_before_the_first_step(lead: int, who: str) -> None:
    group = ScriptedGroup(seed=1).boot()
    group.wait(1000)
    assert not group.died  # idle ranks are silent
    job = group.submit(make_job())
    while group.hub.state != "preparing":
        group.turn()
    group.wait(100)
    assert not group.died
    while job.finished < 0 or len(job.ranks[0].steps) - len(job.ranks[1].steps) != lead:
        group.turn()
    group.wait(2.5)
    assert not group.died
    group.wait(1.0)
    assert group.died == f"{who} stopped answering at step {job.finished + 2}"


def test_an_idle_group_rests_and_meets_again_before_the_next_picture() -> None:
    group = ScriptedGroup().boot()
    for _ in range(3):
        group.wait(2.5)
    group.settle()
    assert [rank.rests for rank in group.ranks] == [1, 1]
    job = group.submit(make_job())
    assert group.hub.state == "joining"
    assert group.hub.update(job.id).message == "Waking the peers"
    group.settle()
    assert job.state == "done"
    group.wait(2.5)
    group.settle()
    assert [rank.rests for rank in group.ranks] == [2, 2]


def test_a_resting_group_that_is_told_to_stop_goes_back_to_sleep() -> None:
    group = ScriptedGroup().boot()
    group.wait(2.5)
    group.settle()
    job = group.submit(make_job())
    group.feed(Stop(job.id))
    group.settle()
    assert (job.state, group.hub.state) == ("cancelled", "idle")


def test_nccl_groups_stay_together() -> None:
    group = ScriptedGroup(backend="nccl").boot()
    group.wait(2.5)
    group.settle()
    assert [rank.rests for rank in group.ranks] == [0, 0]


def test_ranks_that_do_not_meet_are_given_up() -> None:
    group = ScriptedGroup()
    for rank in group.ranks:
        group.feed(Heard(rank.rank, rank.hello()))
    group.wait(61)
    assert "did not find each other" in group.died


def test_weights_that_cannot_be_loaded_are_said_on_the_page() -> None:
    group = ScriptedGroup(3, backlog=(waiting := make_job(),))
    group.feed(Heard(0, group.ranks[0].hello()))
    group.feed(Heard(1, group.ranks[1].hello(error="no such file")))
    group.feed(Heard(2, group.ranks[2].hello(error="no such file")))  # who reads the page keeps what he reads
    status = group.hub.status()
    assert (status.state, status.last_error) == ("dead", "rank 1: no such file")
    assert waiting.state == "failed"
    assert not group.died


STEP = {
    "converged": 2,
    "evaluations": 1,
    "phase": "sync",
    "compute_ms": 1.0,
    "wait_ms": 0.0,
    "sent_bytes": 0,
    "memory_mb": 1.0,
}


@pytest.mark.parametrize(
    "message",
    [
        m.Step(req="r-1", step=3, **STEP),
        m.Step(req="r-9", step=0, **STEP),
        m.Step(req="r-1", step=1, **{**STEP, "converged": 1}),
        m.Step(req="r-1", step=1, **{**STEP, "converged": 5}),
        m.Ended(req="r-1", why="done", step=3),
        m.Ended(req="r-1", why="cancelled", step=0),
        m.Prepared(req="r-1", ok=True),
        m.Ready(gen="aa-1"),
        m.Hello(proto=1, rank=0, world=2, pid=1),
    ],
)
def test_a_message_that_does_not_fit_ends_the_group(message: m.Message) -> None:
    group = ScriptedGroup().boot()
    job = group.submit(make_job())
    while job.finished < 0:
        group.turn()
    group.feed(Heard(0, message))
    assert "does not fit" in group.died


def test_ranks_with_different_models_do_not_start() -> None:
    group = ScriptedGroup()
    group.feed(Heard(0, group.ranks[0].hello(model="a")))
    group.feed(Heard(1, group.ranks[1].hello(model="b")))
    assert "different models" in group.died


def test_only_the_last_finished_requests_are_kept() -> None:
    group = ScriptedGroup().boot()
    for n in range(70):
        group.submit(make_job(f"r-{n}", steps=1))
        group.settle()
    assert len(group.hub.jobs) == 64
    assert "r-69" in group.hub.jobs


@pytest.mark.parametrize("seed", range(30))
def test_random_days_end_every_request_exactly_once(seed: int) -> None:
    source = random.Random(seed)
    group = ScriptedGroup(source.choice([1, 2, 3]), seed=seed, stride=1 + seed % 2).boot()
    jobs = []
    for n in range(12):
        faulty = source.choice(group.ranks)
        faulty.fail_at = source.choice([None, None, -1, 0, 2, 4])
        jobs.append(make_job(f"r-{n}", steps=source.randrange(1, 6)))
        group.feed(Submitted(jobs[-1]))
        for _ in range(source.randrange(20)):
            group.turn()
        if source.random() < 0.4:
            group.feed(Stop(source.choice(jobs).id))
        if source.random() < 0.5:
            group.settle()
        faulty.fail_at = None
    group.settle()
    assert not group.died
    assert group.hub.state == "idle"
    for job in jobs:
        assert job.state in FINAL
        assert group.entries(job.id).count("finished") == 1
