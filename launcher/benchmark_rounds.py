"""How often and in which order the rows of a benchmark are measured. Making a picture is the business of
benchmark_crew.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from distri_engine.config import check_int, check_number
from distri_engine.evaluation.timing import Run, turn_order
from distri_engine.request import GenerationRequest
from launcher.benchmark_crew import BenchmarkCrew
from launcher.benchmark_rows import Row


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How often each row is measured. Raises ValueError for what makes no sense."""

    warmup_times: int = 5
    test_times: int = 20
    ignore_ratio: float = 0.2  # share of the test runs that is left out: half of it the fastest, half the slowest
    minutes: float | None = None  # after which it ends, if need be with fewer test runs, but one at least

    def __post_init__(self) -> None:
        check_int("warmup_times", self.warmup_times, 0, 10_000)
        check_int("test_times", self.test_times, 1, 10_000)
        if check_number("ignore_ratio", self.ignore_ratio, 0, 1) == 1:
            raise ValueError("ignore_ratio 1 leaves no run to measure; give a share below 1, such as 0.2")
        if self.minutes is not None:
            check_number("minutes", self.minutes, 0, 1e6)


def in_turns(
    crew: BenchmarkCrew, rows: Sequence[Row], request: GenerationRequest, measuring: Measuring, began: float
) -> list[list[Run]]:
    """The runs of every row that count. In each round everybody has one turn; no round starts that would not be over in
    time, as far as the longest so far can tell, but for one of warm-up and one that counts. began: when the time began
    to run.
    """
    runs: list[list[Run]] = [[] for _ in rows]
    total, show = measuring.warmup_times + measuring.test_times, sys.stderr.isatty()
    warmups = measuring.warmup_times
    longest = 0.0
    for turn in range(total):
        start = time.monotonic()
        if measuring.minutes is not None:
            left = 60 * measuring.minutes - (start - began)
            if runs[0] and left < longest:
                break
            if 0 < turn < warmups and left < 2 * longest:  # no time for another one beside one that counts
                warmups = turn
        for index in turn_order(len(rows), turn):
            if show:
                print(f"\r\033[Kround {turn + 1} of {total}: {rows[index].name} ", end="", file=sys.stderr, flush=True)
            made = crew.make(rows[index], request)
            if turn >= warmups:
                runs[index].append(made)
        longest = max(longest, time.monotonic() - start)
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return runs
