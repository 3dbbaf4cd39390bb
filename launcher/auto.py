"""Auto: how a picture is shared out when nobody says how. Asks the planner, with what was found out about machine and
model and what finished pictures took; until that is known it keeps to a simple rule. How a page or an API asks is their
business.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any, Protocol

from distri_engine.bands import check_bands, used_ranks
from distri_engine.config import DistriConfig, Parallelism
from distri_engine.evaluation.experience import Experience, Measured
from distri_engine.evaluation.planner import Picture, Plan, Way, choose, ways
from distri_engine.request import GenerationRequest
from launcher.measure import Survey
from launcher.schema import Record, Status

LATEST = 300  # finished pictures that it learns from
MANY = 4  # ranks from which the simple rule spreads guidance: on 2 that alone would occupy both


class Source(Protocol):
    """What of the client is needed."""

    def status(self) -> Status:
        """The group at this moment."""

    def history(self, *, visitor: str | None = None, limit: int = 24) -> list[Record]:
        """Finished requests, newest first."""

    def survey(self) -> Survey | None:
        """What was found out about machine and model."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a visitor leaves to Auto, and what not."""

    split_batch: bool | None = None  # None: as is fastest
    comparing: bool = False  # the picture is to be compared with naive patches: it must be made of patches


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to make the picture, and why."""

    config: DistriConfig
    plan: dict[str, Any]  # "sentence", "candidates" and what was "asked" for, for the report


class Auto:
    """Thread-safe. Reports are read once each, and the machine is fitted to them when there are new ones."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._read: dict[str, Measured | None] = {}  # by the id of a record
        self._known: tuple[Survey, tuple[str, ...], Experience] | None = None  # and what it rests on

    def __call__(self, request: GenerationRequest, config: DistriConfig, wish: Wish) -> Choice:
        """How to make `request`; `config` says the rest: mode, warm-up, and how many ranks, if that is not left open.

        Raises ValueError if nothing that is wished for fits.
        """
        status, survey = self._source.status(), self._source.survey()
        if survey is None or survey.costs is None or status.model is None:
            return simple(request, config, wish, status=status)
        used_ranks(config, status.ranks)  # there are as many as are asked for
        request = request.resolved(default_size=status.model.default_size)
        with self._lock:
            plan = self._plan(request, config, wish, status, survey)
        noun = noun_of(status)
        sentence = f"Auto: {plan.choice(noun)}; {plan.reason(noun)}."
        chosen = plan.chosen.way.applied(config, status.ranks)
        return Choice(config=chosen, plan=plan.as_json(sentence) | _asked(config, wish))

    def learn(self) -> None:
        """Fit to what has been measured since the last time, so that the next picture need not wait for it."""
        status, survey = self._source.status(), self._source.survey()
        if survey is None or survey.costs is None or status.model is None:
            return
        with self._lock:
            self._experience(status, survey, cell=status.model.size_multiple // survey.costs.unit)

    def _plan(
        self, request: GenerationRequest, config: DistriConfig, wish: Wish, status: Status, survey: Survey
    ) -> Plan:
        model, costs = status.model, survey.costs
        assert model is not None
        assert costs is not None
        multiple = model.size_multiple
        picture = Picture.of(request, config, cell=multiple // costs.unit)
        open_to = ways(request, config.replace(ranks=None), status.ranks, multiple, costs)

        def suits(way: Way) -> bool:
            return fits(way, wish, ranks=config.ranks, guided=request.guided)

        if not any(map(suits, open_to)):  # on one rank, say, there is nothing to compare
            wish = replace(wish, comparing=False)
        experience = self._experience(status, survey, cell=multiple // costs.unit)
        return choose(
            picture,
            [experience.estimate(picture, way) for way in open_to],
            status.ranks,
            allowed=suits,
            incumbent=experience.incumbent(picture, suits),
        )

    def _experience(self, status: Status, survey: Survey, *, cell: int) -> Experience:
        assert status.model is not None
        assert survey.costs is not None
        records = [record for record in self._source.history(limit=LATEST) if record.report]
        basis = tuple(record.id for record in records)
        if self._known is None or self._known[0] is not survey or self._known[1] != basis:
            new = {one.id: Measured.of(one.report or {}, cell=cell) for one in records if one.id not in self._read}
            self._read = {id: new[id] if id in new else self._read[id] for id in basis}
            group = (status.model.name, device_kind(status), status.ranks)
            found = [one for one in self._read.values() if one is not None and one.group == group]
            self._known = survey, basis, Experience(survey.costs, survey.machine, found)
        return self._known[2]


def fits(way: Way, wish: Wish, *, ranks: int | None, guided: bool) -> bool:
    """Whether a way is what is wished for."""
    if ranks is not None and way.ranks != ranks:
        return False
    if wish.comparing and (way.parallelism is not Parallelism.PATCH or way.patches < 2):
        return False
    free = wish.split_batch is None or not guided or way.ranks % 2
    return bool(free or way.split_batch == wish.split_batch)


def simple(request: GenerationRequest, config: DistriConfig, wish: Wish, *, status: Status) -> Choice:
    """The rule while nothing is known: patches on as many ranks as can share the picture."""
    used_ranks(config, status.ranks)  # there are as many as are asked for
    split = (config.ranks or status.ranks) >= MANY if wish.split_batch is None else wish.split_batch
    multiple = status.model.size_multiple if status.model else 32
    patches = config.replace(parallelism=Parallelism.PATCH, split_batch=split)
    chosen = patches.replace(parallelism=Parallelism.SINGLE, ranks=None)
    for count in range(status.ranks, 1, -1) if config.ranks is None else (config.ranks,) * (config.ranks > 1):
        part = patches.replace(ranks=None if count == status.ranks else count)
        try:
            check_bands(request, part, status.ranks, multiple)
        except ValueError:
            if config.ranks is not None:
                raise
            continue
        chosen = part
        break
    noun = noun_of(status)
    words = Way.of(chosen, status.ranks, guided=request.guided).words(status.ranks, noun)
    sentence = f"Auto: {words}, until it is known what this model costs here."
    return Choice(config=chosen, plan={"sentence": sentence, "candidates": [], **_asked(config, wish)})


def _asked(config: DistriConfig, wish: Wish) -> dict[str, Any]:
    """What was not left to Auto, so that it can be asked for again."""
    asked = {"ranks": config.ranks, "split_batch": wish.split_batch}
    asked = {name: value for name, value in asked.items() if value is not None}
    return {"asked": asked} if asked else {}


def device_kind(status: Status) -> str:
    """As reports have it: cpu or cuda."""
    return "cpu" if status.device == "CPU" else "cuda"


def noun_of(status: Status) -> str:
    """What the group's members are called."""
    return "ranks" if status.device in ("", "CPU") else "devices"
