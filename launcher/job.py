"""One accepted picture: what every rank has done for it, and how that looks to the page. Deciding what happens next is
hub.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from launcher import messages as m
from launcher.report import StepFigures, make_report
from launcher.schema import Lane, Update

MAX_ATTEMPTS = 2
FINAL = ("done", "cancelled", "failed")


@dataclass(kw_only=True)
class RankWork:
    """One rank's part of a running picture."""

    prepared: m.Prepared | None = None
    steps: list[m.Step] = field(default_factory=list)
    ended: m.Ended | None = None
    left: bool = False  # it works on the picture no more

    @property
    def finished(self) -> int:
        """Index of the last finished step; -1: none."""
        return len(self.steps) - 1


@dataclass(kw_only=True)
class Job:
    """A request from `accepted` to its end. Written by the hub alone."""

    id: str
    request: dict[str, Any]
    config: dict[str, Any]
    visitor: str = ""
    comparison: str = ""
    attempts: int = 0  # how often it was started
    state: str = "queued"
    message: str = ""
    ranks: list[RankWork] = field(default_factory=list)
    upto: int = -1  # the last step granted
    final: int | None = None  # set by Stop: the step after which every rank leaves
    error: str = ""
    preview: str | None = None
    pictures: tuple[str, ...] = ()
    report: dict[str, Any] | None = None

    @property
    def steps(self) -> int:
        """Denoising steps of the whole picture."""
        return int(self.request["steps"])

    @property
    def finished(self) -> int:
        """The last step that every rank has finished; -1: none."""
        return min((rank.finished for rank in self.ranks), default=-1)

    @property
    def slowest_ms(self) -> float:
        """The longest step of any rank so far; 0 before the first."""
        return max((s.compute_ms + s.wait_ms for rank in self.ranks for s in rank.steps), default=0.0)

    def start(self, ranks: int) -> None:
        """Begin an attempt on `ranks` ranks."""
        self.attempts += 1
        self.state, self.message = "starting", "Waking the peers"
        self.ranks = [RankWork() for _ in range(ranks)]
        self.upto, self.final, self.error, self.preview = -1, None, "", None

    def end(self, state: str, message: str) -> None:
        """The last change of state."""
        self.state, self.message = state, message

    def fill_report(self, hellos: Mapping[int, m.Hello], startup_seconds: float) -> None:
        """Gather the figures of all ranks once every one of them is done."""
        ended = next(rank.ended for rank in self.ranks if rank.ended and rank.ended.seconds is not None)
        assert ended.seconds is not None
        self.pictures = tuple(ended.pictures)
        self.report = make_report(
            request=self.request,
            config=self.config,
            model=hellos[0].model,
            device=hellos[0].device_kind,
            threads_per_rank=hellos[0].threads,
            startup_seconds=startup_seconds,
            seconds=ended.seconds,
            steps=[
                [
                    StepFigures(phase=s.phase, compute_ms=s.compute_ms, wait_ms=s.wait_ms, sent_bytes=s.sent_bytes)
                    for s in step
                ]
                for step in zip(*(rank.steps for rank in self.ranks), strict=True)
            ],
            memory_mb=[max(s.memory_mb for s in rank.steps) for rank in self.ranks],
            image=self.pictures[0],
        )

    def update(self, position: int, hellos: Mapping[int, m.Hello]) -> Update:
        """How the page shows it at this moment."""
        step = self.finished + 1
        paces = [[s.compute_ms + s.wait_ms for s in rank.steps] for rank in self.ranks]
        ms_per_step = median(map(max, zip(*paces, strict=False))) if step else 0.0
        left = ms_per_step * (self.steps - step) / 1000
        message = self.message
        if self.state == "running":
            pace = f" · {ms_per_step:.0f} ms/step · {left:.1f} s left" if step else ""
            message = f"Step {step} / {self.steps}{pace}"
        elif self.state == "queued":
            ahead = "1 picture" if position == 1 else f"{position} pictures"
            message = f"Waiting for {ahead} ahead" if position else "Waking the peers"
        return Update(
            id=self.id,
            state=self.state,
            message=message,
            position=position,
            attempt=max(1, self.attempts if self.state != "lost" else self.attempts + 1),
            step=step,
            steps=self.steps,
            phases="".join("S" if s.phase == "sync" else "d" for s in self.ranks[0].steps[:step]) if self.ranks else "",
            ms_per_step=ms_per_step,
            seconds_left=left,
            lanes=tuple(
                _lane(i, rank, pace, hellos) for i, (rank, pace) in enumerate(zip(self.ranks, paces, strict=True))
            ),
            preview=self.preview,
            picture=self.pictures[0] if self.pictures else None,
            pictures=self.pictures,
            report=self.report,
            request=self.request,
            config=self.config,
        )


def _lane(index: int, rank: RankWork, pace: list[float], hellos: Mapping[int, m.Hello]) -> Lane:
    last = rank.steps[-1] if rank.steps else None
    return Lane(
        rank=index,
        device=hellos[index].device if index in hellos else "",
        box=tuple(rank.prepared.box) if rank.prepared and rank.prepared.box else None,  # type: ignore[arg-type]
        branch=rank.prepared.branch if rank.prepared else "both",
        step=len(rank.steps),
        compute_ms=last.compute_ms if last else 0.0,
        wait_ms=last.wait_ms if last else 0.0,
        sent_bytes=last.sent_bytes if last else 0,
        memory_mb=last.memory_mb if last else rank.prepared.memory_mb if rank.prepared else 0.0,
        median_ms=median(pace) if pace else 0.0,
        history=tuple((s.compute_ms, s.wait_ms) for s in rank.steps),
    )
