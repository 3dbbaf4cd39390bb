"""Runs without a browser: what is submitted, what a closed tab leaves behind, what a refusal undoes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.limits import Rate
from launcher.schema import Refused
from launcher.web import settings, visit
from launcher.web.visit import Visits
from tests.support.fake_client import KNOWN, FakeClient
from tests.support.processes import until

WHO = {"visitor": "v", "ids": []}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FakeClient]:
    client = FakeClient(tmp_path, step_seconds=0.02)
    yield client
    client.close()


def values(**changes: Any) -> dict[str, Any]:
    return {**settings.DEFAULTS, "prompt": "x", "steps": 8, **changes}


@pytest.mark.parametrize("followed", [True, False], ids=["while it was followed", "before"])
def test_closed_tab_drops_the_waiting_baselines(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, followed: bool
) -> None:
    monkeypatch.setattr(visit, "GRACE_S", 0.05)
    client.gate = lambda method, step: len(client.running(visitor="v")) == 1  # once nobody waits any more
    visits = Visits(client)
    run = visits.start(WHO, values())["current"]
    if followed:
        frames = visits.follow(run, WHO)
        next(frames)
        frames.close()
    until(lambda: not client.running(visitor="v"))
    first, *others = (next(client.updates(id)).state for id in run["ids"])
    assert (first, others) == ("done", ["cancelled", "cancelled"])


def test_nothing_is_remembered_of_runs_that_are_over(client: FakeClient) -> None:
    client.step_seconds = 0.001
    visits = Visits(client)
    for _ in range(3):
        list(visits.follow(visits.start(WHO, values())["current"], WHO))
    assert not visits._watchers


def test_reload_keeps_them(client: FakeClient) -> None:
    visits = Visits(client)
    run = visits.start(WHO, values())["current"]
    first = visits.follow(run, WHO)
    next(first)
    first.close()
    frame, _ = visits.arrive({"visitor": "v", "ids": run["ids"]}, {})
    assert frame["current"]["busy"]
    assert frame["prompt"] == "x"
    again = visits.follow(frame["current"], WHO)
    next(again)
    visits._abandon(tuple(run["ids"]))  # GRACE_S later
    *_, last = again
    assert list(last["current"]["takes"]) == ["patch", "naive_patch", "single"]


def test_refusal_half_way_takes_back_the_rest(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, calls = client.submit, []

    def refusing(*arguments: Any, **options: Any) -> str:
        calls.append(1)
        if len(calls) == 2:
            raise Refused("20 pictures are waiting already")
        return submit(*arguments, **options)

    monkeypatch.setattr(client, "submit", refusing)
    with pytest.raises(Refused, match="waiting already"):
        Visits(client).start(WHO, values())
    until(lambda: not client.running(visitor="v"))


def test_too_many_runs_of_one_address_are_refused(client: FakeClient) -> None:
    visits = Visits(client, rate=Rate(limit=4))
    visits.start(WHO, values(), "a")
    with pytest.raises(Refused, match="the limit is 4"):
        visits.start(WHO, values(), "a")
    assert len(client.submitted) == 3
    visits.start(WHO, values(), "b")
    assert len(client.submitted) == 6


def test_failed_first_picture_cancels_its_baselines(client: FakeClient) -> None:
    client.step_seconds = 0.1
    client.fault = lambda step: "failed" if step == 2 and len(client.history()) == 0 else ""
    visits = Visits(client)
    run = visits.start(WHO, values())["current"]
    *_, last = visits.follow(run, WHO)
    assert last["stage"]["state"] == "failed"
    until(lambda: not client.running(visitor="v"))
    assert [next(client.updates(id)).state for id in run["ids"]] == ["failed", "cancelled", "cancelled"]


def test_stop_during_a_baseline_keeps_the_picture(client: FakeClient) -> None:
    visits = Visits(client)
    run = visits.start(WHO, values())["current"]
    for frame in visits.follow(run, WHO):
        if frame.get("stage", {}).get("inset"):
            visits.stop(run)
    assert frame["stage"]["state"] == "done"
    assert frame["cards"]["story"].startswith("Stopped at step")
    assert frame["generate"] == {"value": "Generate", "interactive": True}


def test_recall_gives_only_own_pictures(client: FakeClient) -> None:
    visits = Visits(client)
    run = visits.start(WHO, values(run="DistriFusion"))["current"]
    *_, last = visits.follow(run, WHO)
    id = last["gallery"]["tiles"][0]["id"]
    assert visits.recall(visit.NO_RUN, WHO, id)["prompt"] == "x"
    with pytest.raises(ValueError, match="no longer in the history"):
        visits.recall(visit.NO_RUN, {"visitor": "somebody else", "ids": []}, id)
    with pytest.raises(ValueError, match="A picture is being made"):
        visits.recall({**visit.NO_RUN, "busy": True}, WHO, id)


def test_paradigms_with_its_baselines_and_without_ddim(client: FakeClient) -> None:
    visits = Visits(client)
    with pytest.raises(ValueError, match="paradigms needs the steps of DDIM and does not work with scheduler euler"):
        visits.start(WHO, values(parallelism="paradigms", scheduler="euler"))
    *_, last = visits.follow(visits.start(WHO, values(parallelism="paradigms"))["current"], WHO)
    assert [card["name"] for card in last["cards"]["cards"]] == ["1 device", "Naive patch", "ParaDiGMS"]
    assert [card["state"] for card in last["cards"]["cards"]] == ["done"] * 3
    assert last["stage"]["label"] == "ParaDiGMS"
    assert last["cards"]["story"].startswith("ParaDiGMS took")


def test_looking_at_what_was_not_made_says_so(client: FakeClient) -> None:
    visits = Visits(client)
    *_, last = visits.follow(visits.start(WHO, values(run="+ Naive"))["current"], WHO)
    assert last["pair"]["value"] == "Naive | DistriFusion"
    with pytest.raises(ValueError, match="1 device was not part of this run"):
        visits.look(last["current"], "1 device | DistriFusion", "Slider")
    assert visits.look(last["current"], "Naive | DistriFusion", "Side by side")["stage"]["view"] == "sides"


def test_the_picture_that_was_asked_for_is_shown(client: FakeClient) -> None:
    visits = Visits(client)
    chosen = values(run="+ Naive + 1 device", parallelism="tensor")
    *_, last = visits.follow(visits.start(WHO, chosen)["current"], WHO)
    assert last["stage"]["label"] == "Tensor parallel"
    assert list(last["current"]["takes"]) == ["tensor", "naive_patch", "single"]
    assert last["pair"]["choices"] == ["Naive | Tensor parallel", "1 device | Tensor parallel", "1 device | Naive"]
    assert last["pair"]["value"] in last["pair"]["choices"]
    assert last["pair"]["interactive"]
    for pair in last["pair"]["choices"]:
        assert visits.look(last["current"], pair, "Side by side")["pair"]["value"] == pair


def test_a_picture_from_the_gallery_does_not_stand_beside_lanes_of_another(client: FakeClient) -> None:
    visits = Visits(client)
    *_, first = visits.follow(visits.start(WHO, values(run="DistriFusion"))["current"], WHO)
    *_, second = visits.follow(visits.start(WHO, values(run="DistriFusion", width=352, height=192))["current"], WHO)
    assert any(lane.get("bars") for lane in second["lanes"]["lanes"])
    back = visits.recall(second["current"], WHO, first["current"]["ids"][0])
    assert not any(lane.get("bars") for lane in back["lanes"]["lanes"])
    assert back["current"]["resting"]


def test_what_was_asked_of_auto_is_asked_again(client: FakeClient) -> None:
    client.known = KNOWN
    visits = Visits(client)
    *_, last = visits.follow(
        visits.start(WHO, values(run="DistriFusion", ranks="2", split_batch="off"))["current"], WHO
    )
    back = visits.recall(last["current"], WHO, last["current"]["ids"][0])
    assert (back["parallelism"], back["ranks"], back["split_batch"]) == ("auto", "2", "off")


def test_naive_patches_are_left_out_where_nothing_is_cut(client: FakeClient) -> None:
    split = values(parallelism="patch", split_batch="on", run="+ Naive + 1 device")
    assert [str(config.parallelism) for config in settings.plan(split, client.status()).configs] == ["patch", "single"]
    visits = Visits(client)
    *_, last = visits.follow(visits.start(WHO, split)["current"], WHO)
    assert last["cards"]["story"].endswith("No patch was cut: each device had a guidance branch.")
    alone = settings.plan(split | {"guidance_scale": 1.0}, client.status())  # one branch: patches after all
    assert [str(config.parallelism) for config in alone.configs] == ["patch", "naive_patch", "single"]


def test_a_size_of_ones_own_has_no_ratio(client: FakeClient) -> None:
    visits = Visits(client)
    assert visits.proportion(256, 256) == {"aspect": "1:1"}
    assert visits.proportion(32, 256) == {"aspect": None}
    assert visits.proportion(None, 256) == {"aspect": None}


def test_auto_takes_the_fastest_and_comes_back_as_what_it_was(client: FakeClient) -> None:
    client.known = KNOWN
    visits = Visits(client)
    frame = visits.start(WHO, values(run="DistriFusion"))
    assert frame["why"]["text"].startswith("Auto: guidance split over 2 of 2 ranks; ")
    *_, last = visits.follow(frame["current"], WHO)
    assert last["why"] == frame["why"]
    assert last["links"]["link"]["parallelism"] == "patch"
    assert last["links"]["link"]["split_batch"] == "on"
    for back in (
        visits.arrive(frame["browser"], {})[0],  # a reload
        visits.arrive({"visitor": "v", "ids": frame["browser"]["ids"]}, {})[0],  # in a browser that keeps no draft
        visits.recall(last["current"], WHO, last["current"]["ids"][0]),  # the gallery
    ):
        assert (back["parallelism"], back["ranks"], back["split_batch"]) == ("auto", "auto", "auto")
        assert back["why"] == last["why"]
    compared = visits.start(WHO, values(run="+ Naive"))
    assert compared["why"]["text"].startswith("Auto: patches on 2 of 2 ranks; ")
    *_, last = visits.follow(compared["current"], WHO)
    assert client.plans[1:] == [{**client.plans[1], "sentence": compared["why"]["text"]}, None]
    assert visits.start(WHO, values(run="DistriFusion", parallelism="patch"))["why"] == {"text": ""}


def test_a_picture_of_a_larger_group_comes_back(client: FakeClient) -> None:
    visits = Visits(client)
    *_, last = visits.follow(visits.start(WHO, values(parallelism="patch", ranks="2"))["current"], WHO)
    client.ranks = 1
    back, _ = visits.arrive({"visitor": "v", "ids": list(last["current"]["ids"])}, {})
    assert back["ranks"] == "auto"


def test_page_that_lost_track_is_not_busy_for_ever(client: FakeClient) -> None:
    frame = Visits(client).give_up({"ids": ["gone"], "busy": True, "takes": {}})
    assert frame["generate"]["interactive"]
    assert not frame["current"]["busy"]


def test_visitor_without_a_name_gets_one_of_their_own(client: FakeClient) -> None:
    visits = Visits(client)
    names = {visits.start({"visitor": "", "ids": []}, values(run="DistriFusion"))["browser"]["visitor"] for _ in "12"}
    assert len(names - {""}) == 2


def test_unknown_requests_in_the_browser_are_forgotten(client: FakeClient) -> None:
    frame, _ = Visits(client).arrive({"visitor": "v", "ids": ["gone", 7]}, {})
    assert frame["browser"] == {"visitor": "v", "ids": []}
    assert not frame["current"]["busy"]


@pytest.mark.parametrize(
    ("size", "filled"),
    [
        ((None, None, "1:1"), {"width": 256, "height": 256}),
        ((None, None, "16:9"), {"width": 352, "height": 192}),  # chosen before the model was known
        ((288, 224, "1:1"), {"aspect": "4:3"}),  # typed, or from a link
        ((512, 128, "1:1"), {"aspect": None}),
        ((512, None, "1:1"), {"height": 256, "aspect": None}),
    ],
)
def test_only_a_missing_size_is_filled_in(client: FakeClient, size: tuple[Any, ...], filled: dict[str, Any]) -> None:
    frame = Visits(client).tick(visit.NO_RUN, "loading", *size)
    assert {name: frame[name] for name in ("width", "height", "aspect") if name in frame} == filled


def test_devices_get_their_names_when_the_model_is_loaded(client: FakeClient) -> None:
    visits = Visits(client)
    client.loading = True
    frame, _ = visits.arrive(WHO, {"width": "512"})
    assert frame["lanes"]["lanes"][0]["name"] == "rank 0"
    assert frame["width"] == 512
    assert "lanes" not in visits.tick(visit.NO_RUN, "loading", 512, None, "1:1")
    client.loading = False
    frame = visits.tick(visit.NO_RUN, "loading", 512, None, "1:1")
    assert frame["lanes"]["lanes"][0]["name"] == "CPU rank 0"
    assert frame["top"]["badge"] == "2 CPU ranks ready"
    assert "lanes" not in visits.tick(visit.NO_RUN, frame["mood"], 512, 256, "1:1")


def test_lanes_without_a_picture_say_what_the_group_does(client: FakeClient) -> None:
    visits = Visits(client)

    def words(frame: dict[str, Any]) -> set[str]:
        return {lane["status"] for lane in frame["lanes"]["lanes"]}

    frame, _ = visits.arrive(WHO, {})
    assert words(frame) == {"sleeping"}
    client.gate = lambda method, step: method != "waking"
    stranger = visits.start({"visitor": "w", "ids": []}, values(run="DistriFusion"))["current"]
    until(lambda: client.status().state == "running")
    idle = frame["current"]
    frame = visits.tick(idle, "ready", 256, 256, "1:1")
    assert words(frame) == {"at work for somebody else"}
    run = visits.start(WHO, values(run="DistriFusion"))["current"]
    shown = next(visits.follow(run, WHO))
    assert (shown["stage"]["title"], words(shown)) == ("In the queue", {"at work for somebody else"})
    visits.stop(run)
    *_, left = visits.follow(run, WHO)
    visits.stop(stranger)
    until(lambda: client.status().state == "idle")
    assert words(visits.tick(left["current"], "busy", 256, 256, "1:1")) == {"sleeping"}


def test_lanes_of_a_run_that_outlasted_the_loading_stay(client: FakeClient) -> None:
    visits = Visits(client)
    run = visits.start(WHO, values(run="DistriFusion"))["current"]
    frame = visits.tick(run, "loading", 256, 256, "1:1")
    assert "lanes" not in frame
    *_, last = visits.follow(run, WHO)
    until(lambda: client.status().state == "idle")
    assert "lanes" not in visits.tick(last["current"], frame["mood"], 256, 256, "1:1")


def test_stopped_runs_do_not_push_pictures_out_of_the_gallery(client: FakeClient) -> None:
    visits = Visits(client)
    *_, last = visits.follow(visits.start(WHO, values(run="DistriFusion"))["current"], WHO)
    stopped = dataclasses.replace(client.history()[0], state="cancelled", picture=None, report=None)
    client._records += [dataclasses.replace(stopped, id=f"stopped-{number}") for number in range(120)]
    frame, _ = visits.arrive({"visitor": "v", "ids": []}, {})
    assert frame["gallery"] == last["gallery"]
    assert visits.recall(visit.NO_RUN, WHO, frame["gallery"]["tiles"][0]["id"])["prompt"] == "x"


def test_what_was_set_and_not_used_comes_back(client: FakeClient) -> None:
    visits = Visits(client)
    *_, last = visits.follow(visits.start(WHO, values(run="DistriFusion"))["current"], WHO)
    draft = values(prompt="the next one", steps=9, width=None, seed=5, auto_warmup=True, ranks="2", style="Winter")
    browser = {"visitor": "v", "ids": last["current"]["ids"], "draft": draft}
    frame, complaints = visits.arrive(browser, {})
    assert complaints == []
    assert (frame["browser"], frame["stage"]) == (browser, last["stage"])
    back = {name: frame[name]["value"] if name == "style" else frame[name] for name in draft}
    assert back == {**draft, "width": 256, "height": 256}  # of the picture that is shown
    assert visits.arrive(browser, {"prompt": "from a link"})[0]["prompt"] == "from a link"
    run = visits.start(browser, values(prompt="on its way"))
    assert run["browser"]["draft"] == values(prompt="on its way") | {"seed": run["seed"]}
    typed, _ = visits.arrive(run["browser"] | {"draft": draft}, {})
    assert (typed["prompt"], typed["current"]["busy"]) == ("the next one", True)
    for bad in ("x", ["prompt"], {"steps": {}, "mode": 7, "seed": [], "what": "ever", "auto_warmup": "perhaps"}):
        kept, complaints = visits.arrive({"visitor": "w", "ids": [], "draft": bad}, {})
        assert not {"prompt", "steps", "mode", "seed", "what"} & set(kept)
        assert complaints == []


def test_the_settings_of_a_stopped_run_come_back(client: FakeClient) -> None:
    client.gate = lambda method, step: step < 2
    visits = Visits(client)
    started = visits.start(WHO, values(prompt="stopped", run="+ Naive", parallelism="tensor", steps=9))
    for frame in visits.follow(started["current"], WHO):
        if frame.get("stage", {}).get("state") == "running":
            visits.stop(started["current"])
    assert frame["stage"]["state"] == "cancelled"
    back, _ = visits.arrive(started["browser"], {})
    wanted = {"prompt": "stopped", "run": "+ Naive", "parallelism": "tensor", "steps": 9, "seed": started["seed"]}
    assert {name: back[name] for name in wanted} == wanted
    assert (back["stage"], back["random_seed"], back["gallery"]["tiles"]) == (visit.stage.IDLE, True, [])
