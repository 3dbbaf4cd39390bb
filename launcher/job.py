"""One accepted picture: what every rank has done for it, and how that looks to the page. Deciding what happens next is
hub.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median
from typing import Any

from launcher import messages as m
from launcher.lease import grant
from launcher.report import StepFigures, make_report
from launcher.schema import Lane, Update, as_request

MAX_ATTEMPTS = 2
FINAL = ("done", "cancelled", "failed")
STOPPED = "Stopped at step {step}. Your prompt and seed are kept."
TWICE = "the group died twice while running this"


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

    @property
    def converged(self) -> int:
        """Timesteps that are done."""
        return self.steps[-1].converged if self.steps else 0


@dataclass(kw_only=True)
class Job:
    """A request from `accepted` to its end. Written by the hub alone."""

    id: str
    request: dict[str, Any]
    config: dict[str, Any]
    visitor: str = ""
    comparison: str = ""
    plan: dict[str, Any] | None = None  # why it is made this way, if the planner chose
    attempts: int = 0  # how often it was started
    state: str = "queued"
    message: str = ""
    ranks: list[RankWork] = field(default_factory=list)
    upto: int = -1  # the last step granted
    final: int | None = None  # the step after which every rank leaves early, once that is decided
    stopped: bool = False  # somebody wanted it to end
    preview: str | None = None
    pictures: tuple[str, ...] = ()
    report: dict[str, Any] | None = None

    @cached_property
    def steps(self) -> int:
        """Timesteps of the whole picture, and so the most steps that it may take."""
        return as_request(self.request).timesteps

    @property
    def finished(self) -> int:
        """The last step that every rank has finished; -1: none."""
        return min((rank.finished for rank in self.ranks), default=-1)

    @property
    def converged(self) -> int:
        """Timesteps that are done on every rank: how far the picture is."""
        return min((rank.converged for rank in self.ranks), default=0)

    @property
    def lease(self) -> int:
        """The highest step that may start now."""
        last = self.steps - 1
        return grant([last if rank.converged == self.steps else rank.finished for rank in self.ranks], self.steps)

    @property
    def prepared(self) -> bool:
        """Whether every rank is ready for the first step."""
        return all(rank.prepared and rank.prepared.ok for rank in self.ranks)

    @property
    def first_error(self) -> str:
        """What went wrong first, and on which rank; empty if nothing did. Peers fail after the rank that began it."""
        ranks = list(enumerate(self.ranks))
        prepared = [f"rank {n}: {one.prepared.error}" for n, one in ranks if one.prepared and not one.prepared.ok]
        ended = [(one.ended.at, n, one.ended.error) for n, one in ranks if one.ended and one.ended.why == "error"]
        return prepared[0] if prepared else "rank {1}: {2}".format(*min(ended)) if ended else ""

    @property
    def seconds(self) -> float:
        """What the picture took; 0 without a report."""
        return float(self.report["seconds"]["total"]) if self.report else 0.0

    @property
    def slowest_ms(self) -> float:
        """The longest step of any rank so far; 0 before the first."""
        return max((s.compute_ms + s.wait_ms for rank in self.ranks for s in rank.steps), default=0.0)

    def start(self, ranks: int) -> None:
        """Begin an attempt on `ranks` ranks."""
        self.attempts += 1
        self.state, self.message = "starting", "Waking the peers"
        self.ranks = [RankWork() for _ in range(ranks)]
        self.upto, self.final, self.stopped, self.preview = -1, None, False, None

    def prepare(self, rank: int, message: m.Prepared) -> None:
        """A rank is ready for the first step, or has dropped the picture. Raises ValueError if that cannot be."""
        work = self.ranks[rank]
        if work.prepared:
            raise ValueError("a second PREPARED")
        work.prepared, work.left = message, not message.ok

    def add(self, rank: int, step: m.Step) -> None:
        """A rank has finished a step. Raises ValueError if it was not the next one, not granted, or led nowhere."""
        work = self.ranks[rank]
        if step.step != len(work.steps) or step.step > min(self.upto, self.steps - 1):
            raise ValueError(f"step {step.step} after {len(work.steps)} steps, {self.upto} granted")
        if not work.converged < step.converged <= self.steps:
            raise ValueError(f"{step.converged} of {self.steps} timesteps are done after {work.converged}")
        work.steps.append(step)

    def leave(self, rank: int, ended: m.Ended) -> None:
        """A rank works on it no more. Raises ValueError if that was not after the right step, or without a result."""
        work = self.ranks[rank]
        work.ended, work.left = ended, True
        if ended.why == "error":
            return
        denoised = work.converged == self.steps  # after this no step is left to stop at but the decode
        if ended.why == "done":
            due = denoised and self.upto == self.steps
        else:
            due = self.final is not None and (denoised or work.finished == self.final)
        if ended.step != work.finished or not due:
            raise ValueError(f"it left after step {ended.step} ({ended.why})")
        if ended.why == "done" and rank == 0 and not (ended.pictures and ended.seconds is not None):
            raise ValueError("rank 0 ended without a picture")

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
                    StepFigures(
                        phase=s.phase,
                        compute_ms=s.compute_ms,
                        wait_ms=s.wait_ms,
                        sent_bytes=s.sent_bytes,
                        evaluations=s.evaluations,
                        change=s.change,
                    )
                    for s in step
                ]
                for step in zip(*(rank.steps for rank in self.ranks), strict=True)
            ],
            memory_mb=[max(s.memory_mb for s in rank.steps) for rank in self.ranks],
            buffer_mb=[max(s.buffer_mb for s in rank.steps) for rank in self.ranks],
            load_percent=[rank.steps[-1].load for rank in self.ranks],
            image=self.pictures[0],
        )
        if self.plan is not None:
            self.report["plan"] = self.plan

    def update(self, position: int, hellos: Mapping[int, m.Hello]) -> Update:
        """How the page shows it at this moment."""
        step, made = self.converged, self.finished + 1
        paces = [[s.compute_ms + s.wait_ms for s in rank.steps] for rank in self.ranks]
        # A step may take the picture several timesteps further: what counts is the time for one of these.
        ms_per_step = median(map(max, zip(*paces, strict=False))) * made / step if step else 0.0
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
            phases="".join("S" if s.phase == "sync" else "d" for s in self.ranks[0].steps[:made]) if self.ranks else "",
            changes=tuple(_change(step) for step in zip(*(rank.steps for rank in self.ranks), strict=False)),
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


def _change(step: tuple[m.Step, ...]) -> float | None:
    """The mean over the ranks that know it."""
    known = [rank.change for rank in step if rank.change is not None]
    return fmean(known) if known else None


def _lane(index: int, rank: RankWork, pace: list[float], hellos: Mapping[int, m.Hello]) -> Lane:
    last = rank.steps[-1] if rank.steps else None
    return Lane(
        rank=index,
        device=hellos[index].device if index in hellos else "",
        box=tuple(rank.prepared.box) if rank.prepared and rank.prepared.box else None,  # type: ignore[arg-type]
        branch=rank.prepared.branch if rank.prepared else "both",
        step=rank.converged,
        compute_ms=last.compute_ms if last else 0.0,
        wait_ms=last.wait_ms if last else 0.0,
        sent_bytes=last.sent_bytes if last else 0,
        memory_mb=last.memory_mb if last else rank.prepared.memory_mb if rank.prepared else 0.0,
        buffer_mb=last.buffer_mb if last else 0.0,
        load=last.load if last else None,
        median_ms=median(pace) if pace else 0.0,
        history=tuple((s.compute_ms, s.wait_ms) for s in rank.steps),
    )
