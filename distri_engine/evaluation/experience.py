"""What finished pictures teach the planner: their measured steps correct its predictions. It reads reports and
remembers nothing else; where they lie is the launcher's business. Plain arithmetic, free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.evaluation.costs import Costs
from distri_engine.evaluation.machine import Machine, Work
from distri_engine.evaluation.planner import Estimate, Pace, Picture, Way, predicted, works
from distri_engine.request import GenerationRequest

NEWEST = 9  # pictures whose median counts: enough to be steady, few enough to follow a machine that changes
_KINDS = 30  # kinds of pictures that the machine's figures are fitted to
_PULL = 0.05  # how strongly figures that no measurement speaks about stay what they were

Figures = tuple[float, float, float]  # logarithms of what computing, launching and messages take, of what was assumed


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Pictures of which every step takes equally long."""

    height: int
    width: int
    batch: int
    guided: bool
    way: Way
    mode: SyncMode | None  # of patches

    @classmethod
    def of(cls, picture: Picture, way: Way) -> Kind:
        """The kind that a planned picture will be."""
        mode = picture.mode if way.parallelism is Parallelism.PATCH else None
        size = {name: getattr(picture, name) for name in ("height", "width", "batch", "guided")}
        return cls(way=way, mode=mode, **size)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One finished picture."""

    group: tuple[str, str, int]  # model, kind of device, ranks that there were: what makes pictures comparable
    picture: Picture
    way: Way
    sync_s: float | None  # median seconds of a synchronous step
    stale_s: float | None  # of a displaced one
    planned: bool  # whether the planner chose the way

    @property
    def kind(self) -> Kind:
        """What it can be compared with."""
        return Kind.of(self.picture, self.way)

    @classmethod
    def of(cls, report: Mapping[str, Any], *, cell: int) -> Measured | None:
        """From a picture's report; None if nothing can be learnt from it. `cell` pixels a latent cell."""
        try:
            request, config = GenerationRequest(**report["request"]), DistriConfig(**report["config"])
            if config.parallelism not in (Parallelism.SINGLE, Parallelism.PATCH, Parallelism.TENSOR):
                return None
            group = (str(report["model"]), str(report["device"]), int(report["ranks"]))
            seconds: dict[str, list[float]] = {"sync": [], "stale": []}
            for step in report["steps"]:
                slowest = max(rank["compute_ms"] + rank["wait_ms"] for rank in step["ranks"])
                seconds[step["phase"]].append(float(slowest) / 1000)
            # The first step of a kind also allocates.
            sync_s, stale_s = (median(list[1:] or list) if list else None for list in seconds.values())
            if not any((sync_s, stale_s)):
                return None
            return cls(
                group=group,
                picture=Picture.of(request, config, cell=cell),
                way=Way.of(config, group[2], guided=request.guided),
                sync_s=sync_s,
                stale_s=stale_s,
                planned="plan" in report,
            )
        except (KeyError, TypeError, ValueError, AssertionError):
            return None


class Experience:
    """Predictions for one group, corrected by what was measured in it."""

    def __init__(self, costs: Costs, machine: Machine, found: Iterable[Measured] = ()) -> None:
        """`found`: of this group, the newest first."""
        self.costs = costs
        self._found = list(found)
        self._kinds: dict[Kind, list[Measured]] = {}
        for one in self._found:
            known = self._kinds.setdefault(one.kind, [])
            if len(known) < NEWEST:
                known.append(one)
        self.machine = fitted(machine, self._points())

    def estimate(self, picture: Picture, way: Way) -> Estimate:
        """What was measured of just such pictures; else the prediction, corrected."""
        guess = predicted(picture, way, self.costs, self.machine)
        if own := self._kinds.get(Kind.of(picture, way)):
            return Estimate(way=way, seconds=_pace(own, guess).seconds(picture, way), pictures=len(own))
        return Estimate(way=way, seconds=self._left_over(picture, way) * guess.seconds(picture, way))

    def incumbent(self, picture: Picture, allowed: Callable[[Way], bool]) -> Way | None:
        """What the planner chose last for such a picture, of the `allowed` ways."""
        for one in self._found:
            if one.planned and allowed(one.way) and Kind.of(picture, one.way) == one.kind:
                return one.way
        return None

    def _left_over(self, picture: Picture, way: Way) -> float:
        """By how much the fitted machine misses this way at the nearest size at which it was measured."""
        same = [kind for kind in self._kinds if kind.way == way]
        if not same:
            return 1.0
        area = picture.height * picture.width
        nearest = min(same, key=lambda kind: abs(math.log(kind.height * kind.width / area)))
        known = self._kinds[nearest]
        guess = predicted(known[0].picture, way, self.costs, self.machine)
        return _pace(known, guess).seconds(known[0].picture, way) / guess.seconds(known[0].picture, way)

    def _points(self) -> list[tuple[Work, float]]:
        points = []
        for known in list(self._kinds.values())[:_KINDS]:
            try:
                fresh, displaced = works(known[0].picture, known[0].way, self.costs)
            except (KeyError, ValueError):  # not counted
                continue
            for work, name in ((fresh, "sync_s"), (displaced, "stale_s")):
                if (seconds := _median(known, name)) is not None:
                    points.append((work, seconds))
        return points


def _median(known: Sequence[Measured], name: str) -> float | None:
    values = [value for one in known if (value := getattr(one, name)) is not None]
    return median(values) if values else None


def _pace(known: Sequence[Measured], guess: Pace) -> Pace:
    """Medians; a phase that was not measured is as far from the guess as the other one is."""
    sync_s, stale_s = _median(known, "sync_s"), _median(known, "stale_s")
    if sync_s is None:
        assert stale_s is not None
        sync_s = guess.sync_s * stale_s / guess.stale_s
    return Pace(sync_s=sync_s, stale_s=guess.stale_s * sync_s / guess.sync_s if stale_s is None else stale_s)


def fitted(machine: Machine, points: Sequence[tuple[Work, float]]) -> Machine:
    """`machine` with what its computing, its launches and its messages take scaled to fit measured steps best.

    Least squares of logarithms; figures that no measurement speaks about stay, and none goes beyond a factor of 20.
    """

    def misfit(figures: Figures) -> float:
        scaled = _scaled(machine, figures)
        errors = (math.log(scaled.step_seconds(work) / seconds) for work, seconds in points)
        return sum(error * error for error in errors) + _PULL * sum(figure * figure for figure in figures)

    best: Figures = (0.0, 0.0, 0.0)
    least, stride = misfit(best), 1.0
    while points and stride > 0.01:  # a walk along the axes, in ever smaller strides
        a, b, c = best
        around = [(a + d, b, c) for d in (stride, -stride)]
        around += [(a, b + d, c) for d in (stride, -stride)] + [(a, b, c + d) for d in (stride, -stride)]
        near = [figures for figures in around if max(map(abs, figures)) <= 3]
        found = min(near, key=misfit)
        if misfit(found) < least:
            best, least = found, misfit(found)
        else:
            stride /= 2
    return _scaled(machine, best)


def _scaled(machine: Machine, figures: Figures) -> Machine:
    computing, launching, messages = map(math.exp, figures)
    return replace(
        machine,
        flops=machine.flops / computing,
        memory=machine.memory / computing,
        launch_s=machine.launch_s * launching,
        bandwidth=machine.bandwidth / messages,
        message_s=machine.message_s * messages,
    )
