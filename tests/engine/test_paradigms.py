"""ParaDiGMS against sequential DDIM: the algorithm alone, whole pictures on N ranks, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from distri_engine.bands import check_bands
from distri_engine.config import DistriConfig
from distri_engine.errors import UnsupportedError
from distri_engine.mesh import Mesh
from distri_engine.methods.paradigms import picard
from distri_engine.request import GenerationRequest
from tests.engine.test_engine import job, pictures, psnr
from tests.support.gang import run_on_ranks
from tests.support.models import (
    DEMO_MODEL,
    PROMPTS,
    demo_pipeline,
    relative,
    sdxl_inputs,
    tiny_embeddings,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
)

ALONE = Mesh(0, 1, torch.device("cpu"))
TINY_CALL = {"height": 64, "width": 96, "num_inference_steps": 9, "output_type": "latent"}
DEMO_CALL = {"prompt": PROMPTS[1], "height": 128, "width": 160, "num_inference_steps": 8, "output_type": "latent"}

TWO_PROMPTS = {name: torch.cat([value, value.flip(-1)]) for name, value in tiny_embeddings().items()}
# With tolerance 0: (prediction type, DistriConfig, call)
EXACT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("epsilon", {}, {"guidance_scale": 5.0}),
    ("v_prediction", {"picard_window": 4}, {"guidance_scale": 5.0}),
    ("epsilon", {"picard_window": 1}, {"guidance_scale": 1.0}),
    ("v_prediction", {"picard_window": 30}, {"guidance_scale": 1.0, "num_images_per_prompt": 2}),
    ("epsilon", {"picard_window": 6}, {"guidance_scale": 3.0, "eta": 0.0, **TWO_PROMPTS}),
]


def ddim(steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    return scheduler


def bent(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A little model: latents [n, C, H, W] at a timestep, or at n of them -> noise."""
    return torch.tanh(latents * (1 + timestep.to(latents.dtype).reshape(-1, 1, 1, 1) / 1000)).roll(1, -1)


def walk(window: int, tolerance: float, steps: int = 12, predict: Any = bent) -> list[Any]:
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    scheduler = ddim(steps)
    return list(picard(start, scheduler, scheduler.timesteps, predict, ALONE, window=window, tolerance=tolerance))


def sequential(steps: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    x, scheduler, results = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype),
        ddim(steps),
        [],
    )
    for timestep in scheduler.timesteps:
        results.append(scheduler.step(bent(x, timestep), timestep, x))
        x = results[-1].prev_sample
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_window_of_one_is_sequential_to_the_last_bit(dtype: torch.dtype) -> None:
    expected = sequential(12, dtype)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    scheduler = ddim(12)
    walked = picard(start, scheduler, scheduler.timesteps, bent, ALONE, window=1, tolerance=0.1)
    for step, result in zip(walked, expected, strict=True):
        assert torch.equal(step.latents, result.prev_sample)
        assert torch.equal(step.heading, result.pred_original_sample)


@pytest.mark.parametrize("window", [2, 5, 12, 40])
def test_every_converged_timestep_is_that_of_sequential_sampling(window: int) -> None:
    expected = sequential(12)
    steps, before = walk(window, 0.0), 0
    assert steps[-1].converged == 12
    for step in steps:
        assert step.converged > before
        assert step.evaluations == min(window, 12 - before)
        before = step.converged
        assert relative(step.latents, expected[before - 1].prev_sample) < 1e-6
        assert relative(step.heading, expected[before - 1].pred_original_sample) < 1e-6


def test_tolerance_trades_iterations_for_likeness() -> None:
    expected = sequential(50)[-1].prev_sample
    runs = {tolerance: walk(8, tolerance, 50) for tolerance in (0.0, 0.02, 0.1, 100.0)}
    counts = [len(steps) for steps in runs.values()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == 7  # 50 / 8: with any move allowed the whole window converges at once
    errors = [relative(steps[-1].latents, expected) for steps in runs.values()]
    assert errors[0] < 1e-6 < errors[1] < errors[2] < errors[3]
    assert errors[1] < 0.05


def test_what_is_not_a_number_does_not_converge() -> None:
    steps = walk(4, 0.1, predict=lambda latents, timestep: latents * float("nan"))
    assert [step.converged for step in steps] == list(range(1, 13))


def exact_latents() -> list[torch.Tensor]:
    """On a rank: final latents of every case of EXACT, and of the embedded model."""
    from distri_engine import DistriSDXLPipeline, open_mesh

    latents = []
    with open_mesh(DistriConfig()) as mesh:
        for prediction_type, options, call in EXACT:
            config = DistriConfig(parallelism="paradigms", picard_tolerance=0, **options)
            pipeline = DistriSDXLPipeline(tiny_sdxl_pipeline(prediction_type), config, mesh)
            pipeline.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(1)
            latents.append(pipeline(**{**tiny_embeddings(), **TINY_CALL, **call}, generator=generator).images)
        config = DistriConfig(parallelism="paradigms", picard_tolerance=0, picard_window=4)
        pipeline = DistriSDXLPipeline.from_pretrained(str(DEMO_MODEL), distri_config=config)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        latents.append(pipeline(**DEMO_CALL, generator=torch.Generator().manual_seed(1)).images)
        pipeline.close()
    return latents


@pytest.fixture(scope="module")
def exact_oracle() -> list[torch.Tensor]:
    latents = []
    for prediction_type, _, call in EXACT:
        plain = tiny_sdxl_pipeline(prediction_type)
        plain.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        latents.append(plain(**{**tiny_embeddings(), **TINY_CALL, **call}, generator=generator).images)
    latents.append(demo_pipeline()(**DEMO_CALL, generator=torch.Generator().manual_seed(1)).images)
    return latents


@pytest.mark.parametrize("world", [1, 2, 4])
def test_tolerance_zero_equals_diffusers(world: int, exact_oracle: list[torch.Tensor]) -> None:
    everybody = run_on_ranks(world, exact_latents)
    for ours, expected in zip(everybody[0], exact_oracle, strict=True):
        assert relative(ours, expected) < 5e-6
    for other in everybody[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(everybody[0], other, strict=True))


def test_pictures_events_and_cancelling_on_three_ranks(measured: Callable[[str], None]) -> None:
    paradigms = {"parallelism": "paradigms"}
    jobs = [
        job(config={"parallelism": "single"}, steps=20),
        job(config=paradigms, steps=20),
        job(config={"mode": "stale_gn", "warmup_steps": 0}),  # leaves a stale step behind
        job(config={**paradigms, "picard_window": 4}, steps=20, stop_after=2),
        job(config={**paradigms, "picard_window": 4}, steps=20, images=2),
        job(config=paradigms, steps=20),
        job(config=paradigms, height=32, width=64, steps=5, guidance_scale=1.0),  # one unit of rows, three ranks
    ]
    ranks = run_on_ranks(3, pictures, jobs)
    alone, first, _, cancelled, wide, again, small = ranks[0]
    assert np.array_equal(first[0], again[0])
    assert small[0].shape == (32, 64, 3)
    likeness = psnr(first[0], alone[0]), psnr(wide[0], alone[0])
    counts = [len(result[1]) - 1 for result in (first, wide)]
    measured(
        f"ParaDiGMS, 20 steps, tolerance 0.1, PSNR to one device: window 3 {likeness[0]:.1f} dB in {counts[0]} "
        f"iterations, window 4 {likeness[1]:.1f} dB in {counts[1]}"
    )
    assert likeness[0] > 20
    assert max(counts) < 20
    assert cancelled[0] is None
    assert len(cancelled[1]) == 4  # Prepared and three iterations

    for index, window in ((1, 3), (3, 4), (4, 4)):
        prepared, *steps = zip(*(rank[index][1] for rank in ranks), strict=True)
        assert {(one.box, one.branch) for one in prepared} == {((0, 0, 256, 256), "both")}
        before = 0
        for number, together in enumerate(steps):
            assert {(one.step, one.steps, one.phase) for one in together} == {(number, 20, "sync")}
            (converged,) = {one.converged for one in together}  # on all ranks the same
            assert converged > before
            assert sum(one.evaluations for one in together) == min(window, 20 - before)
            assert all(one.evaluations <= -(-window // 3) for one in together)
            assert all(one.sent_bytes > 0 for one in together if one.evaluations)
            before = converged
        assert before == 20 or index == 3


def refused() -> list[str]:
    """On a rank: what wrong calls say, and that the group works after them."""
    from distri_engine import DistriSDXLPipeline, ParallelUNet, open_mesh

    said = []
    config = DistriConfig(parallelism="paradigms", height=64, width=64)
    with open_mesh(config) as mesh:
        pipeline = DistriSDXLPipeline(tiny_sdxl_pipeline(), config, mesh)
        pipeline.set_progress_bar_config(disable=True)
        plain = pipeline.scheduler

        def call(**wrong: Any) -> Any:
            return pipeline(**tiny_embeddings(), num_inference_steps=2, output_type="latent", **wrong).images

        def complaint(make: Any, **wrong: Any) -> None:
            with pytest.raises((ValueError, UnsupportedError)) as error:
                make(**wrong)
            said.append(str(error.value))

        complaint(call, callback_on_step_end=print)
        complaint(call, denoising_end=0.5)
        complaint(call, eta=0.5)
        pipeline.scheduler = EulerDiscreteScheduler.from_config(plain.config)
        complaint(call)
        complaint(ParallelUNet(tiny_sdxl_unet(), config, mesh), timestep=5, **sdxl_inputs(2, 8, 8))
        pipeline.scheduler = plain
        assert call(callback_on_step_end=None, eta=0.0).isfinite().all()
    return said


def test_what_has_no_parallel_form_is_refused_by_name() -> None:
    for said in run_on_ranks(2, refused):
        for sentence, name in zip(said[:3], ("callback_on_step_end", "denoising_end", "eta"), strict=True):
            assert sentence == f"{name} is not supported under parallelism paradigms; choose another parallelism"
        assert said[3].startswith("parallelism paradigms needs the steps of DDIM and does not work with EulerDiscrete")
        assert "DDIMScheduler.from_config" in said[3]
        assert said[4].startswith("parallelism paradigms shares out timesteps, and a call of the UNet has but one; ")


def test_options_and_requests_are_checked_without_torch() -> None:
    for options, sentence in (
        ({"picard_window": 0}, "picard_window 0 is out of range; give a number from 1 to 1000"),
        ({"picard_window": 2.5}, "picard_window 2.5 is not a whole number; give one from 1 to 1000"),
        ({"picard_tolerance": -1}, "picard_tolerance -1 is out of range; give a number from 0 to 100"),
        ({"picard_tolerance": float("nan")}, "picard_tolerance nan is not a finite number; give one from 0 to 100"),
    ):
        with pytest.raises(ValueError, match="picard") as error:
            DistriConfig(**options)
        assert str(error.value) == sentence
    config = DistriConfig(parallelism="paradigms")
    request = GenerationRequest(prompt="x", height=32, width=32)
    check_bands(request, config, 8)  # a size that eight ranks could not share by rows
    with pytest.raises(ValueError, match="needs the steps of DDIM and does not work with scheduler euler; choose"):
        check_bands(request.replace(scheduler="euler"), config, 8)
