"""The arithmetic of a benchmark, on runs whose figures are known."""

from __future__ import annotations

import pytest

from distri_engine.evaluation.timing import (
    Run,
    SteadyRank,
    StepTime,
    dropped,
    speedup,
    steady_ranks,
    steady_step_ms,
    summarise,
    turn_order,
)


def step(phase: str, compute_ms: float, wait_ms: float) -> StepTime:
    return StepTime(stale=phase == "stale", compute_ms=compute_ms, wait_ms=wait_ms)


def run(total_s: float, *ranks: tuple[StepTime, ...], **seconds: float) -> Run:
    stages = {"text": 0.0, "denoise": total_s, "decode": 0.0, "save": 0.0, **seconds}
    return Run(total_s=total_s, seconds=stages, steps=ranks or ((step("sync", 1, 0),),))


@pytest.mark.parametrize(
    ("count", "ratio", "each_end"),
    [(20, 0.2, 2), (20, 0.0, 0), (5, 0.2, 0), (10, 0.2, 1), (5, 0.99, 2), (200, 0.29, 29), (1, 0.5, 0)],
)
def test_as_many_are_dropped_as_in_the_original(count: int, ratio: float, each_end: int) -> None:
    assert dropped(count, ratio) == each_end


def test_the_slowest_and_the_fastest_do_not_count() -> None:
    totals = [3.0, 100.0, 1.0, 2.0, 4.0, 0.1, 7.0, 6.0, 5.0, 8.0]
    stages = [run(total, text=total / 2) for total in totals]
    figures = summarise(stages, ignore_ratio=0.2)
    assert (figures.runs, figures.min_s, figures.median_s, figures.max_s) == (8, 1.0, 4.5, 8.0)
    assert figures.mean_s == 4.5
    assert figures.seconds == {"text": 2.25, "denoise": 4.5, "decode": 0.0, "save": 0.0}
    everything = summarise(stages, ignore_ratio=0.0)
    assert (everything.runs, everything.min_s, everything.max_s, everything.mean_s) == (10, 0.1, 100.0, 13.61)


def test_steady_steps_are_the_stale_ones() -> None:
    one = (step("sync", 90, 10), step("stale", 10, 0), step("stale", 12, 8), step("stale", 30, 10))
    other = (step("sync", 50, 50), step("stale", 7, 4), step("stale", 13, 2), step("stale", 20, 20))
    # The slowest rank of each step: 11, 20, 40.
    assert steady_step_ms(run(1, one, other)) == 20
    first, second = steady_ranks(run(1, one, other))
    assert first == SteadyRank(compute_ms=12, wait_ms=8, wait_share=0.25)
    assert second == SteadyRank(compute_ms=13, wait_ms=4, wait_share=4 / 11)
    figures = summarise([run(1, one, other), run(2, one, one), run(3, other, other)], ignore_ratio=0)
    assert figures.steady_step_ms == 20
    assert figures.ranks == (first, second)
    assert figures.most_waiting is figures.ranks[0]


def test_without_stale_steps_the_first_is_left_out() -> None:
    steps = (step("sync", 90, 10), step("sync", 20, 0), step("sync", 22, 2))
    assert steady_step_ms(run(1, steps)) == 22
    assert steady_step_ms(run(1, steps[:1])) == 100
    assert steady_ranks(run(1, (step("sync", 0, 0),)))[0].wait_share == 0


def test_speedups_are_ratios_of_medians() -> None:
    slow, fast = (summarise([run(total) for total in totals], ignore_ratio=0) for totals in ([6, 4, 50], [1, 2, 9]))
    assert (speedup(slow, fast), speedup(fast, slow), speedup(None, fast)) == (3, 1 / 3, None)


def test_turns_rotate_and_alternate() -> None:
    turns = [turn_order(4, turn) for turn in range(8)]
    assert turns[:4] == [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0], [0, 3, 2, 1]]
    assert all(sorted(order) == [0, 1, 2, 3] for order in turns)
    assert sorted(order[0] for order in turns) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert turn_order(1, 5) == [0]
