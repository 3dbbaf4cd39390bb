"""Auto: what it makes of wishes, of what was found out, and of the history; and how its questions are answered."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from distri_engine.config import DistriConfig
from distri_engine.evaluation.machine import Machine
from distri_engine.request import GenerationRequest
from launcher import surveyor
from launcher.auto import Auto, Wish
from launcher.measure import Survey, Unmeasured, survey
from launcher.model import DEMO_MODEL
from launcher.schema import Record, Status
from launcher.surveyor import Surveyor, unet_settings
from tests.support.fake_client import KNOWN, MODEL
from tests.support.processes import until

STATUS = Status(state="idle", message="", ranks=4, device="CPU", model=MODEL, queue=0, restarts=0)
REQUEST = GenerationRequest(prompt="x", height=512, width=512, steps=20)


class Source:
    """A client's knowledge, to be filled in by a test."""

    def __init__(self, known: Survey | None = KNOWN, **changes: Any) -> None:
        self.known, self.records = known, list[Record]()
        self._status = dataclasses.replace(STATUS, **changes)

    def status(self) -> Status:
        return self._status

    def survey(self) -> Survey | None:
        return self.known

    def history(self, *, visitor: str | None = None, limit: int = 24) -> list[Record]:
        return self.records[:limit]

    def finish(self, config: DistriConfig, ms: float, *, plan: dict[str, Any] | None = None, **about: Any) -> None:
        """A picture of REQUEST, each step of which took `ms`."""
        ranks = [{"compute_ms": ms, "wait_ms": 0.0}] * self._status.ranks
        report = {
            "request": dataclasses.asdict(REQUEST),
            "config": dataclasses.asdict(config),
            "model": MODEL.name,
            "device": "cpu",
            "ranks": self._status.ranks,
            "steps": [{"step": 0, "phase": phase, "ranks": ranks} for phase in ["sync"] * 5 + ["stale"] * 15],
        }
        report |= {"plan": plan} if plan else {}
        record = Record(
            id=str(len(self.records)),
            finished=0,
            state="done",
            request=report["request"],
            config=report["config"],
            picture="x.png",
            report=report | about,
        )
        self.records.insert(0, record)


def test_wishes() -> None:
    auto = Auto(Source())
    free = auto(REQUEST, DistriConfig(), Wish())
    fastest = free.plan["candidates"][0]
    assert fastest["seconds"] == min(one["seconds"] for one in free.plan["candidates"])
    assert (fastest["parallelism"], fastest["split_batch"]) == (free.config.parallelism, free.config.split_batch)
    assert free.plan["sentence"].startswith("Auto: ")
    assert free.plan["sentence"].endswith(" than one rank is expected at 512 x 512.")
    two = auto(REQUEST, DistriConfig(ranks=2), Wish()).config
    assert (two.ranks, two.split_batch) == (2, True)
    compared = auto(REQUEST, DistriConfig(ranks=2, mode="no_sync"), Wish(comparing=True)).config
    assert (compared.ranks, compared.split_batch, compared.mode) == (2, False, "no_sync")
    assert not auto(REQUEST, DistriConfig(), Wish(split_batch=False)).config.split_batch
    assert auto(REQUEST, DistriConfig(ranks=1), Wish(comparing=True)).config.parallelism == "single"
    low = auto(REQUEST.replace(height=32), DistriConfig(), Wish(split_batch=False, comparing=True))
    assert low.config.parallelism in ("single", "tensor")  # one unit of rows: there is nothing to compare
    with pytest.raises(ValueError, match="5 ranks are asked for and 4 are there"):
        auto(REQUEST, DistriConfig(ranks=5), Wish())


def test_nothing_is_known() -> None:
    for source in (Source(None), Source(dataclasses.replace(KNOWN, costs=None)), Source(model=None, device="")):
        choice = Auto(source)(REQUEST, DistriConfig(), Wish())
        assert (choice.config.parallelism, choice.config.ranks) == ("patch", None)
        assert choice.plan["sentence"].endswith("until it is known what this model costs here.")


def test_it_learns_from_the_history_and_a_restart_forgets_nothing() -> None:
    source = Source()
    auto = Auto(source)
    first = auto(REQUEST, DistriConfig(), Wish())
    source.finish(first.config, 900, plan=first.plan)
    source.finish(DistriConfig(parallelism="single"), 300)
    second = auto(REQUEST, DistriConfig(), Wish())
    assert second.config != first.config
    for config, ms in ((second.config, 310), (DistriConfig(split_batch=False), 900), (DistriConfig(ranks=2), 800)):
        source.finish(config, ms, plan=second.plan)
    settled = auto(REQUEST, DistriConfig(), Wish())
    assert Auto(source)(REQUEST, DistriConfig(), Wish()) == settled
    measured = {
        (one["parallelism"], one["ranks"], one["split_batch"]) for one in settled.plan["candidates"] if one["measured"]
    }
    assert ("single", 1, False) in measured
    assert len(measured) >= 4


def test_pictures_of_other_groups_teach_nothing() -> None:
    source = Source()
    before = Auto(source)(REQUEST, DistriConfig(), Wish())
    for about in ({"model": "another"}, {"device": "cuda"}, {"ranks": 2}):
        source.finish(before.config, 9000, **about)
    assert Auto(source)(REQUEST, DistriConfig(), Wish()) == before


def test_what_was_chosen_stays_within_noise() -> None:
    source = Source(ranks=2)
    auto = Auto(source)
    first = auto(REQUEST, DistriConfig(), Wish())
    for parallelism, ms in (("patch", 200), ("tensor", 200), ("single", 100)):
        source.finish(DistriConfig(parallelism=parallelism, split_batch=False), ms)
    source.finish(first.config, 102, plan=first.plan)
    assert first.config.split_batch
    assert auto(REQUEST, DistriConfig(), Wish()).config == first.config
    for _ in range(3):
        source.finish(first.config, 120, plan=first.plan)
    changed = auto(REQUEST, DistriConfig(), Wish())
    assert changed.config.parallelism == "single"
    assert changed.plan["sentence"] == "Auto: 1 of 2 ranks alone; sharing was measured to be 1.2x slower at 512 x 512."


# --- the questions


def test_surveyor_asks_once_and_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = [], threading.Event()

    def slow(*arguments: object, **options: object) -> Survey:
        asked.append((arguments, options))
        answer.wait(10)
        return KNOWN

    monkeypatch.setattr(surveyor, "survey", slow)
    one = Surveyor()
    assert one.found(dataclasses.replace(STATUS, model=None)) is None
    assert asked == []
    assert one.found(dataclasses.replace(STATUS, model=dataclasses.replace(MODEL, path=str(DEMO_MODEL)))) is None
    assert one.found(STATUS) is None
    answer.set()
    until(lambda: one.found(STATUS) is KNOWN, 40)
    ((arguments, options),) = asked
    assert arguments[:2] == ("cpu", 4)
    assert arguments[3] == DEMO_MODEL / "unet" / "config.json"
    assert options == {"quietly": True}


def test_what_cannot_be_measured_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object, **options: object) -> Survey:
        raise Unmeasured("this machine could not be measured: no torch")

    monkeypatch.setattr(surveyor, "survey", broken)
    one = Surveyor()
    assert one.found(STATUS) is None
    until(lambda: not (one._thread and one._thread.is_alive()), 40)
    assert one.found(STATUS) is None
    assert caplog.text.count("could not be measured: no torch; Auto keeps to patches") == 1


def test_a_real_survey() -> None:
    found = survey("cpu", 2, 1, unet_settings(str(DEMO_MODEL)), quietly=True)
    assert set(found.measured) == {field.name for field in dataclasses.fields(Machine)} - {"overlap"}
    assert all(0 < getattr(found.machine, name) < 1e15 for name in found.measured)
    assert found.machine.launch_s < 1e-3
    assert found.costs == KNOWN.costs
    assert unet_settings("no/such-model") is None
    with pytest.raises(Unmeasured, match="No such file"):
        survey("cpu", 2, 1, DEMO_MODEL / "nothing.json")
