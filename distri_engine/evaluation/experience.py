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
_LIMIT, _FAR = 3.0, 2.0  # of their logarithms: no figure goes beyond a factor of 20
_PULL = 0.05  # how strongly figures that no measurement speaks about stay what they were

Figures = tuple[float, ...]  # logarithms of what computing, launching and messages take, of what was assumed


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


@dataclass(frozen=True)
class Timing:
    """Seconds of a step; medians."""

    whole: float  # of the rank that took longest
    computing: float  # of the rank that computed longest: the rest is waiting for messages

    @classmethod
    def of(cls, timings: Sequence[Timing]) -> Timing:
        """Of many."""
        return cls(median(one.whole for one in timings), median(one.computing for one in timings))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One finished picture."""

    group: tuple[str, str, int]  # model, kind of device, ranks that there were: what makes pictures comparable
    picture: Picture
    way: Way
    sync: Timing | None  # a synchronous step
    stale: Timing | None  # a displaced one
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
            found: dict[str, list[Timing]] = {"sync": [], "stale": []}
            for step in report["steps"]:
                computing = [float(rank["compute_ms"]) / 1000 for rank in step["ranks"]]
                waiting = [float(rank["wait_ms"]) / 1000 for rank in step["ranks"]]
                found[step["phase"]].append(Timing(max(map(sum, zip(computing, waiting, strict=True))), max(computing)))
            # The first step of a kind also allocates.
            sync, stale = (Timing.of(list[1:] or list) if list else None for list in found.values())
            if not all(timing.computing > 0 for timing in (sync, stale) if timing) or not (sync or stale):
                return None
            return cls(
                group=group,
                picture=Picture.of(request, config, cell=cell),
                way=Way.of(config, group[2], guided=request.guided),
                sync=sync,
                stale=stale,
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
        for kind in [kind for kind, known in self._kinds.items() if not _counted(known[0], costs)]:
            del self._kinds[kind]
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
        """By how much the fitted machine misses, judged by pictures of the nearest size: of this way, if there are any.
        If not, only what makes it faster counts, so that a way that was never tried is not written off.
        """
        same = [kind for kind in self._kinds if kind.way == way]
        if not self._kinds:
            return 1.0
        area = picture.height * picture.width
        distance = {kind: abs(math.log(kind.height * kind.width / area)) for kind in same or self._kinds}
        nearest = [kind for kind in distance if distance[kind] == min(distance.values())]
        missed = median(map(self._missed, nearest))
        return missed if same else min(1.0, missed)

    def _missed(self, kind: Kind) -> float:
        """How much longer pictures of a measured kind take than the fitted machine predicts."""
        known = self._kinds[kind]
        picture = known[0].picture
        guess = predicted(picture, kind.way, self.costs, self.machine)
        return _pace(known, guess).seconds(picture, kind.way) / guess.seconds(picture, kind.way)

    def _points(self) -> list[tuple[Work, Timing]]:
        points = []
        for known in list(self._kinds.values())[:_KINDS]:
            fresh, displaced = works(known[0].picture, known[0].way, self.costs)
            for work, phase in ((fresh, "sync"), (displaced, "stale")):
                if timing := _median(known, phase):
                    points.append((work, timing))
        return points


def _counted(one: Measured, costs: Costs) -> bool:
    """Whether there is a prediction to compare it with."""
    try:
        works(one.picture, one.way, costs)
    except (KeyError, ValueError):
        return False
    return True


def _median(known: Sequence[Measured], phase: str) -> Timing | None:
    timings = [timing for one in known if (timing := getattr(one, phase)) is not None]
    return Timing.of(timings) if timings else None


def _pace(known: Sequence[Measured], guess: Pace) -> Pace:
    """Medians; a phase that was not measured is as far from the guess as the other one is."""
    sync, stale = _median(known, "sync"), _median(known, "stale")
    ratio = sync.whole / guess.sync_s if sync else stale.whole / guess.stale_s if stale else 1.0
    return Pace(
        sync_s=sync.whole if sync else guess.sync_s * ratio, stale_s=stale.whole if stale else guess.stale_s * ratio
    )


def fitted(machine: Machine, points: Sequence[tuple[Work, Timing]]) -> Machine:
    """`machine` with what its computing, its launches and its messages take scaled to fit measured steps best.

    Least squares of logarithms; figures that no measurement speaks about stay.
    """

    def misfit(figures: Figures) -> float:
        scaled = _scaled(machine, figures)
        error = sum(
            math.log(scaled.step_seconds(work) / timing.whole) ** 2
            + math.log(scaled.computing_seconds(work) / timing.computing) ** 2
            for work, timing in points
        )
        return error + _PULL * sum(figure * figure for figure in figures)

    if not points:
        return machine
    starts = [(0.0, 0.0, 0.0), (_FAR, 0.0, 0.0), (0.0, _FAR, 0.0), (0.0, 0.0, _FAR)]  # the valleys are narrow
    return _scaled(machine, min((descended(start, misfit, _LIMIT) for start in starts), key=misfit))


def descended(place: Figures, height: Callable[[Figures], float], limit: float) -> Figures:
    """Where a walk along the axes ends, in ever smaller strides downhill, `limit` from the origin at most."""
    least, stride = height(place), 1.0
    while stride > 0.01:
        moves = [(axis, step) for axis in range(len(place)) for step in (stride, -stride)]
        steps = [(*place[:axis], place[axis] + step, *place[axis + 1 :]) for axis, step in moves]
        lowest, found = min((height(step), step) for step in steps if max(map(abs, step)) <= limit)
        if lowest < least:
            least, place = lowest, found
        else:
            stride /= 2
    return place


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
