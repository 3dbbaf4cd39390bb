"""Whole pictures on N ranks against plain diffusers on one device."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL, PROMPTS, demo_pipeline, relative, tiny_embeddings, tiny_sdxl_pipeline

CALL: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "latent"}


def tiny_latents(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """On a rank: final latents of the random pipeline under full_sync."""
    from distri_engine import DistriConfig, DistriSDXLPipeline, open_mesh

    config = DistriConfig(mode="full_sync")
    with open_mesh(config) as mesh:
        pipe = tiny_sdxl_pipeline()
        pipe.set_progress_bar_config(disable=True)
        pipeline = DistriSDXLPipeline(pipe, config, mesh)
        return [
            pipeline(**tiny_embeddings(), height=h, width=w, generator=torch.Generator().manual_seed(1), **CALL).images
            for h, w in sizes
        ]


def demo_latents(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """On a rank: final latents of the embedded model under full_sync, text encoded on rank 0 only."""
    from diffusers import DDIMScheduler

    from distri_engine import DistriConfig, DistriSDXLPipeline

    config = DistriConfig(mode="full_sync", split_batch=False)
    pipeline = DistriSDXLPipeline.from_pretrained(str(DEMO_MODEL), distri_config=config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert (pipeline.text_encoder is None) == (config.rank != 0)
    latents = [
        pipeline(PROMPTS[1], height=h, width=w, generator=torch.Generator().manual_seed(1), **CALL).images
        for h, w in sizes
    ]
    pipeline.close()
    return latents


SIZES = [(128, 128), (160, 96)]


@cache
def tiny_oracle() -> list[torch.Tensor]:
    """By plain diffusers on one device."""
    plain = tiny_sdxl_pipeline()
    plain.set_progress_bar_config(disable=True)
    return [
        plain(**tiny_embeddings(), height=h, width=w, generator=torch.Generator().manual_seed(1), **CALL).images
        for h, w in SIZES
    ]


@cache
def demo_oracle() -> list[torch.Tensor]:
    """The same of the embedded model."""
    plain = demo_pipeline()
    return [
        plain(PROMPTS[1], height=h, width=w, generator=torch.Generator().manual_seed(1), **CALL).images
        for h, w in SIZES
    ]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_full_sync_equals_one_device(world: int) -> None:
    for latents in run_on_ranks(world, tiny_latents, SIZES):
        for ours, theirs in zip(latents, tiny_oracle(), strict=True):
            assert relative(ours, theirs) < 5e-6


@pytest.mark.parametrize("world", [2, 3, 4])
def test_full_sync_equals_one_device_on_the_embedded_model(world: int) -> None:
    for latents in run_on_ranks(world, demo_latents, SIZES):
        for ours, theirs in zip(latents, demo_oracle(), strict=True):
            assert relative(ours, theirs) < 5e-6


def usage_example(world: int) -> Any:
    """On a rank: the original's usage example with only the import (and the model's name) changed."""
    from distri_engine import DistriConfig, DistriSDXLPipeline

    distri_config = DistriConfig(height=256, width=256, warmup_steps=4)
    pipeline = DistriSDXLPipeline.from_pretrained(
        distri_config=distri_config,
        pretrained_model_name_or_path=str(DEMO_MODEL),
        variant=None,
        use_safetensors=True,
    )
    pipeline.set_progress_bar_config(disable=distri_config.rank != 0)
    image = pipeline(
        prompt="a white lighthouse on green hills", generator=torch.Generator(device="cpu").manual_seed(233)
    ).images[0]
    assert distri_config.world_size == world
    assert distri_config.device == torch.device("cpu")
    unseeded = pipeline(prompt="a red house", num_inference_steps=2, guidance_scale=0.0, output_type="np").images
    pipeline.prepare()
    pipeline.close()
    return np.asarray(image), unseeded


@pytest.mark.parametrize("world", [1, 2])
def test_the_originals_usage_example(world: int) -> None:
    pictures, unseeded = zip(*run_on_ranks(world, usage_example, world), strict=True)
    assert all(picture.shape == (256, 256, 3) for picture in pictures)
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    assert all(np.array_equal(picture, unseeded[0]) for picture in unseeded)  # the ranks agreed on a seed
    assert unseeded[0].shape == (1, 256, 256, 3)


def refused(world: int) -> list[str]:
    """On a rank: what a wrong call says."""
    from distri_engine import DistriConfig, DistriSDXLPipeline, UnsupportedError, open_mesh

    config = DistriConfig(height=128, width=128, split_batch=False)
    said = []
    with open_mesh(config) as mesh:
        pipeline = DistriSDXLPipeline(tiny_sdxl_pipeline(), config, mesh)
        for wrong in ({"height": 1000}, {"ip_adapter_image": object()}, {"height": 32}):
            try:
                pipeline(**tiny_embeddings(), num_inference_steps=1, **wrong)
            except (ValueError, UnsupportedError) as error:
                said.append(str(error))
    return said


def test_wrong_calls_are_refused_on_every_rank() -> None:
    for said in run_on_ranks(2, refused, 2):
        assert said[0] == "height 1000 is not a multiple of 32; nearest: 992 or 1024"
        assert said[1].startswith("ip_adapter_image is not supported under patch parallelism")
        assert "2 ranks cannot share 1 units" in said[2]
