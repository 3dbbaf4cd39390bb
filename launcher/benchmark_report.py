"""The figures of a benchmark as they go into JSON. The arithmetic behind them is that of the engine's evaluation
package; the table for people is benchmark_table.py's business.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distri_engine.config import Parallelism
from distri_engine.evaluation.timing import Figures, Run, speedup, summarise
from launcher.benchmark_rows import Row
from launcher.options import usable_cores


def machine(hellos: Sequence[Mapping[str, Any]], *, threads: int, load: float) -> dict[str, Any]:
    """What the figures were measured on. hellos: what the ranks say of themselves; load: average before the start, 0
    where nothing else runs.
    """
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "threads_per_rank": threads,
        "devices": [hello["device"] for hello in hellos],
        "python": platform.python_version(),
        "torch": hellos[0]["torch"],
        "diffusers": hellos[0]["diffusers"],
        "load_average": round(load, 2),
    }


def report_rows(rows: Sequence[Row], runs: Sequence[Sequence[Run]], ignore_ratio: float) -> list[dict[str, Any]]:
    """The rows' figures as they go into JSON; what has nothing to be compared with is None."""
    figures = [summarise(some, ignore_ratio=ignore_ratio) for some in runs]
    stock = [one for row, one in zip(rows, figures, strict=True) if row.config is None]
    one_rank = _one_rank(rows, figures)
    report = []
    for row, one, some in zip(rows, figures, runs, strict=True):
        over_one = speedup(one_rank, one)
        report.append(
            {
                "parallelism": row.parallelism,
                "mode": row.mode.value if row.mode else None,
                "split_batch": row.split,
                "ranks": row.ranks,
                "threads_per_rank": row.threads,
                "runs": one.runs,
                **{name: round(getattr(one, name), 6) for name in ("median_s", "min_s", "max_s", "mean_s")},
                "seconds": {stage: round(seconds, 6) for stage, seconds in one.seconds.items()},
                "steady_step_ms": round(one.steady_step_ms, 4),
                "exposed_wait_ms": round(one.most_waiting.wait_ms, 4),
                "exposed_wait_share": round(one.most_waiting.wait_share, 5),
                "steady_ranks": [
                    {name: round(figure, 5) for name, figure in asdict(rank).items()} for rank in one.ranks
                ],
                "speedup_vs_one_rank": over_one,
                "speedup_vs_baseline": speedup(stock[0] if stock else None, one),
                "speedup_vs_baseline_all_cores": speedup(stock[-1] if stock else None, one),
                "efficiency": None if over_one is None or row.config is None else over_one / row.ranks,
                "all_s": [round(run.total_s, 6) for run in some],  # in the order of the rounds, none left out
            }
        )
    return report


def _one_rank(rows: Sequence[Row], figures: Sequence[Figures]) -> Figures | None:
    """One rank by `patch`, or if there is none by `single`."""
    alone = {row.parallelism: one for row, one in zip(rows, figures, strict=True) if row.config and row.ranks == 1}
    return alone.get(Parallelism.PATCH, alone.get(Parallelism.SINGLE))


def _cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
