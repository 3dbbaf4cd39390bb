"""How long pictures take: what many runs of one kind come to, and how kinds compare. Pure arithmetic on figures that
somebody else has measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

STAGES = ("text", "denoise", "decode", "save")


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One denoising step of one rank."""

    stale: bool  # whether it used what the others sent one step ago
    compute_ms: float
    wait_ms: float  # exposed wait for peers

    @property
    def total_ms(self) -> float:
        """Wall time."""
        return self.compute_ms + self.wait_ms


@dataclass(frozen=True, kw_only=True)
class Run:
    """One picture."""

    total_s: float  # from having the request to having the result
    seconds: dict[str, float]  # by stage; together a little less than the total
    steps: tuple[tuple[StepTime, ...], ...]  # [rank][step]


@dataclass(frozen=True, kw_only=True)
class SteadyRank:
    """What one rank does in a steady step: medians."""

    compute_ms: float
    wait_ms: float
    wait_share: float  # of the step's wall time on this rank, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the runs of one kind come to. Without the slowest and fastest ones, if some are ignored."""

    runs: int  # how many count
    median_s: float
    min_s: float
    max_s: float
    mean_s: float  # what the original DistriFusion's benchmark prints
    seconds: dict[str, float]  # median by stage
    steady_step_ms: float
    ranks: tuple[SteadyRank, ...]

    @property
    def most_waiting(self) -> SteadyRank:
        """The rank that waits most for its peers."""
        return max(self.ranks, key=lambda rank: rank.wait_ms)


def dropped(count: int, ignore_ratio: float) -> int:
    """How many of `count` sorted runs are ignored at each end: ignore_ratio x count / 2, rounded down."""
    return int(ignore_ratio * count / 2 + 1e-9)  # 0.29 x 200 is 57.99... in binary


def summarise(runs: Sequence[Run], *, ignore_ratio: float) -> Figures:
    """The figures of `runs`, at least one, of which the share `ignore_ratio` < 1 is ignored: half of it the fastest,
    half of it the slowest pictures.
    """
    ignored = dropped(len(runs), ignore_ratio)
    kept = sorted(runs, key=lambda run: run.total_s)[ignored : len(runs) - ignored]
    totals = [run.total_s for run in kept]
    return Figures(
        runs=len(kept),
        median_s=median(totals),
        min_s=totals[0],
        max_s=totals[-1],
        mean_s=fmean(totals),
        seconds={stage: median(run.seconds[stage] for run in kept) for stage in STAGES},
        steady_step_ms=median(steady_step_ms(run) for run in kept),
        ranks=tuple(_together(ranks) for ranks in zip(*map(steady_ranks, kept), strict=True)),
    )


def steady_steps(run: Run) -> list[int]:
    """The steps that stand for a long picture: the stale ones, or where there are none all after the first, or it."""
    steps = run.steps[0]  # all ranks are in the same phase
    return [index for index, step in enumerate(steps) if step.stale] or list(range(1, len(steps))) or [0]


def steady_step_ms(run: Run) -> float:
    """Median wall time of a steady step; of all ranks the slowest counts."""
    return median(max(rank[index].total_ms for rank in run.steps) for index in steady_steps(run))


def steady_ranks(run: Run) -> tuple[SteadyRank, ...]:
    """Medians of every rank's steady steps."""
    steady = steady_steps(run)
    return tuple(
        SteadyRank(
            compute_ms=median(rank[index].compute_ms for index in steady),
            wait_ms=median(rank[index].wait_ms for index in steady),
            wait_share=median(_share(rank[index]) for index in steady),
        )
        for rank in run.steps
    )


def _share(step: StepTime) -> float:
    return step.wait_ms / step.total_ms if step.total_ms else 0.0


def _together(ranks: Sequence[SteadyRank]) -> SteadyRank:
    """The same rank in several runs."""
    return SteadyRank(
        compute_ms=median(rank.compute_ms for rank in ranks),
        wait_ms=median(rank.wait_ms for rank in ranks),
        wait_share=median(rank.wait_share for rank in ranks),
    )


def speedup(reference: Figures | None, figures: Figures) -> float | None:
    """How many times as fast as `reference` a picture is made: the ratio of the medians. None without a reference."""
    return reference.median_s / figures.median_s if reference is not None else None


def turn_order(count: int, turn: int) -> list[int]:
    """In which order `count` kinds have their `turn`-th turn. Every other turn goes backwards, so that nobody always
    follows the same one, and each pair of turns begins one further on.
    """
    order = [(index + turn // 2) % count for index in range(count)]
    return order[::-1] if turn % 2 else order
