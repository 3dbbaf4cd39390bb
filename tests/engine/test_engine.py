"""The engine as a service, on the embedded model: same seed, same picture; events; cancelling; settings that change."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL, PROMPTS

Job = dict[str, Any]


def pictures(jobs: list[Job]) -> list[tuple[np.ndarray[Any, Any] | None, list[Any], Any]]:
    """On a rank: (picture on rank 0, events without tensors, seconds) of every job, one after another by one engine."""
    import dataclasses
    import os

    from distri_engine import DistriConfig, Engine, GenerationRequest, open_mesh
    from distri_engine.telemetry import Finished, StepDone

    engine = Engine(
        str(DEMO_MODEL), device="cpu", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    results = []
    with open_mesh(DistriConfig()) as mesh:
        engine.attach(mesh)
        for job in jobs:
            request = {"height": 256, "width": 256, "seed": 7, "steps": 8, **job["request"]}
            steps, picture, seconds = [], None, {}
            decode = job.get("decode", True)
            events = engine.generate(GenerationRequest(**request), DistriConfig(**job["config"]), decode=decode)
            for event in events:
                if isinstance(event, Finished):
                    picture, seconds = (np.asarray(event.images[0]) if event.images else None), event.seconds
                    continue
                steps.append(dataclasses.replace(event, latents=None) if isinstance(event, StepDone) else event)
                if isinstance(event, StepDone) and event.step == job.get("stop_after"):
                    events.close()
                    break
            results.append((picture, steps, seconds))
        engine.detach()
    return results


def job(prompt: str = PROMPTS[1], stop_after: int | None = None, config: Job | None = None, **request: Any) -> Job:
    """One picture to make."""
    return {
        "request": {"prompt": prompt, **request},
        "config": {"split_batch": False, **(config or {})},
        "stop_after": stop_after,
    }


def almost_equal(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """At most 1 of 255 off on under 0.1 % of pixels."""
    off = np.abs(a.astype(int) - b.astype(int))
    return bool(off.max() <= 1 and (off.max(axis=-1) > 0).mean() < 1e-3)


def test_same_seed_same_picture_for_any_number_of_ranks() -> None:
    full_sync = {"mode": "full_sync"}
    jobs = [
        job(config=full_sync),
        job(PROMPTS[2], config=full_sync, height=192, width=320, scheduler="euler"),
        job(PROMPTS[3], config=full_sync, height=320, width=192, scheduler="dpm-solver", guidance_scale=1.0),
        job("a zebra in Zürich, 日本! 42", config=full_sync, images=2, negative_prompt="blue"),
    ]
    for one in jobs:
        one["request"]["steps"] = 4
    alone = [result[0] for result in run_on_ranks(1, pictures, jobs)[0]]
    for world in (2, 3, 4):
        together = [result[0] for result in run_on_ranks(world, pictures, jobs)[0]]
        for one, many in zip(alone, together, strict=True):
            assert one is not None
            assert many is not None
            assert almost_equal(one, many), world


def test_settings_change_on_every_request_and_leave_no_trace() -> None:
    modes = ("corrected_async_gn", "no_sync", "stale_gn", "sync_gn", "separate_gn", "full_sync")
    changing = [
        job(PROMPTS[i], config={"mode": mode, "warmup_steps": i % 3, "comm_checkpoint": 5 + 20 * i}, steps=4 + i,
            height=(128, 96, 160)[i % 3], width=(128, 160)[i % 2], scheduler=("ddim", "euler", "dpm-solver")[i % 3])
        for i, mode in enumerate(modes)
    ]  # fmt: skip
    changing += [
        job(height=128, config={"parallelism": "naive_patch", "split_scheme": "alternate"}),
        job(height=128, config={"parallelism": "single"}),
        job(height=128, config={"parallelism": "tensor"}),
        job(height=128, config={"split_batch": True}),
    ]
    for changed, one in zip(run_on_ranks(2, pictures, changing)[0], changing, strict=True):
        (fresh,) = run_on_ranks(2, pictures, [one])[0]
        assert fresh[0] is not None
        assert np.array_equal(changed[0], fresh[0]), one  # type: ignore[arg-type]


def test_events_and_resting_ranks() -> None:
    jobs = [job(config={"warmup_steps": 2}), job(config={"parallelism": "single"}), job(config={"split_batch": True})]
    jobs.append({**job(steps=2), "decode": False})
    first, second = run_on_ranks(2, pictures, jobs)
    prepared, *steps = first[0][1]
    assert (prepared.box, prepared.branch) == ((0, 0, 256, 128), "both")
    assert second[0][1][0].box == (0, 128, 256, 256)
    assert [step.phase for step in steps] == ["sync"] * 3 + ["stale"] * 5
    assert [step.step for step in steps] == list(range(8))
    assert all(step.steps == 8 and step.compute_ms > 0 and step.wait_ms >= 0 and step.sent_bytes > 0 for step in steps)
    assert [step.change is None for step in steps] == [True] + [False] * 7
    assert steps[1].change > 1.5 * steps[-1].change > 0  # neighbouring steps are nearly alike: why displacement works
    assert set(first[0][2]) == {"text", "denoise", "decode"}
    assert second[0][0] is None
    # One device: rank 0 does everything, and the other says that it rests.
    prepared, *steps = second[1][1]
    assert (prepared.box, prepared.branch) == (None, "none")
    assert all(step.compute_ms == step.sent_bytes == 0 for step in steps)
    assert not any(step.change for step in first[1][1][1:] + first[2][1][1:])  # nobody sees anybody's activations
    assert first[1][1][0].box == (0, 0, 256, 256)
    # The guidance branches on two ranks: each has the whole picture.
    assert [rank[2][1][0].branch for rank in (first, second)] == ["unconditional", "conditional"]
    # Latents are enough: all steps, and no picture.
    assert [(rank[3][0], len(rank[3][1])) for rank in (first, second)] == [(None, 3)] * 2


def test_a_part_of_the_group_makes_what_a_smaller_group_makes() -> None:
    guided_apart, window = {"split_batch": True, "mode": "extrapolated"}, {"parallelism": "paradigms"}
    jobs = [job(config={}), job(config=guided_apart), job(config=window), job(config={"parallelism": "tensor"})]
    smaller = [result[0] for result in run_on_ranks(2, pictures, jobs)[0]]
    parts: list[Job] = [{**one, "config": {**one["config"], "ranks": 2}} for one in jobs]
    # Between them, pictures of the whole group, of one rank, and one that is cancelled in the middle.
    between = [job(), job(config={"ranks": 1}), job(stop_after=2, config={"ranks": 2})]
    results = run_on_ranks(3, pictures, [parts[0], *between, *parts])
    for part, one in zip([results[0][0], *results[0][len(between) + 1 :]], [smaller[0], *smaller], strict=True):
        assert np.array_equal(part[0], one)  # type: ignore[arg-type]
    assert [rank[0][1][0].branch for rank in results] == ["both", "both", "none"]


def test_cancel_leaves_the_engine_ready() -> None:
    size = {"height": 128, "width": 128}
    usual = job(config={"warmup_steps": 1}, **size)
    other = {"mode": "stale_gn", "warmup_steps": 0}
    moments = (0, 3, 7)
    jobs = [usual]
    for moment in moments:
        jobs += [
            job(PROMPTS[4], stop_after=moment, config={"warmup_steps": 1}, **size),
            usual,
            job(PROMPTS[5], stop_after=moment, height=96, width=160, config=other),
            usual,
        ]
    (undisturbed, *_), *results = run_on_ranks(2, pictures, jobs)[0]
    assert undisturbed is not None
    for moment in moments:
        cancelled, after, of_another_size, last, *results = results
        for stopped in (cancelled, of_another_size):
            assert len(stopped[1]) == moment + 2  # Prepared and the steps
            assert stopped[0] is None
        assert np.array_equal(undisturbed, after[0])
        assert np.array_equal(undisturbed, last[0])


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, dB."""
    error = ((a.astype(float) - b.astype(float)) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
