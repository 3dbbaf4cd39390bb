"""Pictures that start from a picture, by the engine, against plain diffusers' image-to-image on one device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image

from distri_engine import open_mesh
from distri_engine.config import DistriConfig
from distri_engine.engine import DEMO_MODEL, SCHEDULERS, Engine
from distri_engine.from_picture import fitted
from distri_engine.request import GenerationRequest
from distri_engine.telemetry import Finished
from tests.support.gang import run_on_ranks

SIZE = {"height": 128, "width": 96}


def drawn(folder: Path) -> Path:
    """A picture of another shape, with a tilted sky."""
    tilted = np.add.outer(np.arange(90) * 2, np.arange(120))[..., None] + np.array([0, 60, 120])
    Image.fromarray((tilted % 256).astype(np.uint8)).save(path := folder / "start.png")
    return path


def request(image: Path, scheduler: str, images: int = 1) -> GenerationRequest:
    return GenerationRequest(
        prompt="a red house",
        steps=6,
        seed=3,
        image=str(image),
        strength=0.7,
        scheduler=scheduler,
        images=images,
        **SIZE,
    )  # type: ignore[arg-type]


def made(engine: Engine, wanted: GenerationRequest, config: DistriConfig) -> tuple[list[Any], int]:
    """The pictures, and how many steps they took."""
    *steps, last = engine.generate(wanted, config)
    assert isinstance(last, Finished)
    # Or the activations of the VAE's encoder would be kept until the picture is done.
    assert not any(step.latents.requires_grad for step in steps if getattr(step, "latents", None) is not None)
    return [np.asarray(image) for image in last.images], len(steps) - 1


def plain(wanted: GenerationRequest) -> list[Any]:
    """By diffusers alone."""
    pipe: Any = StableDiffusionXLImg2ImgPipeline.from_pretrained(DEMO_MODEL)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SCHEDULERS[wanted.scheduler].from_config(pipe.scheduler.config)
    assert wanted.image is not None
    images = pipe(
        wanted.prompt,
        image=fitted(wanted.image, SIZE["width"], SIZE["height"]),
        strength=wanted.strength,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance_scale,
        num_images_per_prompt=wanted.images,
        generator=torch.Generator().manual_seed(wanted.seed or 0),
    ).images
    return [np.asarray(image) for image in images]


def close(ours: list[Any], theirs: list[Any]) -> bool:
    return len(ours) == len(theirs) and all(
        np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(ours, theirs, strict=True)
    )


def on_rank(image: Path) -> list[Any]:
    """On a rank: exact patches, then the same with stale activations."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    engine = Engine(str(DEMO_MODEL), device="cpu", rank=rank, world_size=world)
    config = DistriConfig(height=SIZE["height"], width=SIZE["width"], split_batch=False, warmup_steps=0)
    if rank:
        image = Path("is on rank 0 alone")
    with open_mesh(config) as mesh:
        engine.attach(mesh)
        return [made(engine, request(image, "euler"), config.replace(mode=mode)) for mode in ("full_sync", "stale_gn")]


@pytest.mark.parametrize(("scheduler", "images"), [("ddim", 2), ("dpm-solver", 1)])
def test_one_device_makes_what_plain_diffusers_makes(tmp_path: Path, scheduler: str, images: int) -> None:
    wanted = request(drawn(tmp_path), scheduler, images)
    engine = Engine(str(DEMO_MODEL), device="cpu")
    with open_mesh(DistriConfig(**SIZE)) as mesh:
        engine.attach(mesh)
        ours, steps = made(engine, wanted, DistriConfig(**SIZE))
    assert steps == wanted.timesteps == 4
    assert close(ours, plain(wanted))


def test_two_ranks_make_it_together(tmp_path: Path) -> None:
    image = drawn(tmp_path)
    expected = plain(request(image, "euler"))
    (exact, stale), _ = run_on_ranks(2, on_rank, image)
    assert (exact[1], stale[1]) == (4, 4)
    assert close(exact[0], expected)
    assert not np.array_equal(stale[0][0], expected[0])
    difference = stale[0][0].astype(float) - expected[0]
    assert 10 * np.log10(255**2 / np.square(difference).mean()) > 25


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"strength": 0.0}, "strength 0.0 is out of range; give a number above 0, up to 1"),
        ({"strength": True}, "strength True is out of range; give a number above 0, up to 1"),
        ({"strength": 0.1}, "strength 0.1 of 6 steps leaves none; raise strength to 0.17"),
        ({"image": ""}, "image '' names no picture file"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + sentence.replace("'", ".") + "$"):
        GenerationRequest(**{"prompt": "x", "steps": 6, "image": "a.png", **change})
