"""The report of one picture, for `generate --report`, the page and its API: one shape, whoever made the picture.
Gathering the figures is the caller's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What one rank measured in one step."""

    phase: str  # "sync" or "stale"
    compute_ms: float
    wait_ms: float
    sent_bytes: int
    evaluations: int  # timesteps on which it ran the UNet
    change: float | None = None  # how far activations moved, relative to their size; None: unknown


def make_report(
    *,
    request: Mapping[str, Any],
    config: Mapping[str, Any],
    model: str,
    device: str,
    threads_per_rank: int,
    startup_seconds: float,
    seconds: Mapping[str, float],
    steps: Sequence[Sequence[StepFigures]],  # [step][rank]
    memory_mb: Sequence[float],
    buffer_mb: Sequence[float],
    load_percent: Sequence[float | None],
    image: str | None,
) -> dict[str, Any]:
    """A dict that is JSON as it stands. Seconds exclude process start and model load, which are `startup_seconds`.

    `load_percent` is each rank's over the whole picture: of one core by its process, or of its GPU; None: unknown.
    With paradigms a step is a Picard iteration, and "picard" has their number and that of all ranks' UNet evaluations.
    """
    parts = {name: round(float(seconds.get(name, 0.0)), 6) for name in ("text", "denoise", "decode", "save")}
    report: dict[str, Any] = {
        "request": dict(request),
        "config": dict(config),
        "model": model,
        "device": device,
        "ranks": len(memory_mb),
        "threads_per_rank": threads_per_rank,
        "startup_seconds": round(startup_seconds, 3),
        "seconds": {**parts, "total": round(sum(parts.values()), 6)},
        "steps": [
            {
                "step": index,
                "phase": ranks[0].phase,
                "ranks": [
                    {
                        "compute_ms": round(one.compute_ms, 3),
                        "wait_ms": round(one.wait_ms, 3),
                        "sent_bytes": one.sent_bytes,
                        "change": None if one.change is None else round(one.change, 5),
                    }
                    for one in ranks
                ],
            }
            for index, ranks in enumerate(steps)
        ],
        "memory_mb": [round(memory, 1) for memory in memory_mb],
        "buffer_mb": [round(buffers, 3) for buffers in buffer_mb],
        "load_percent": [None if load is None else round(load, 1) for load in load_percent],
        "image": image,
    }
    if config["parallelism"] == "paradigms":
        evaluations = sum(one.evaluations for ranks in steps for one in ranks)
        report["picard"] = {"iterations": len(steps), "evaluations": evaluations}
    return report
