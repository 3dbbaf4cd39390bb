"""Sampling without diffusers' own loop: the guided UNet as a function of latents and timestep, and the loop that
DistriSDXLPipeline runs when ranks share timesteps. The order of the timesteps is the method's business.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput

from distri_engine.config import DistriConfig
from distri_engine.errors import UnsupportedError
from distri_engine.mesh import Mesh
from distri_engine.methods import METHODS, Predict
from distri_engine.vae import unscale

_TEXT = {
    *("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "clip_skip"),
    *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}
_SUPPORTED = {
    *_TEXT,
    *("height", "width", "num_inference_steps", "guidance_scale", "num_images_per_prompt", "generator", "latents"),
    *("output_type", "return_dict"),
}


def guided_unet(
    model: Callable[..., Any], scheduler: Any, conditions: Mapping[str, Any], guidance_scale: float | None
) -> Predict:
    """The noise prediction of `model` under `conditions`, for the latents of one batch of pictures or of several.

    conditions: tensors [B, ...], or [2B, ...] with the unconditional branch first; None: without guidance. Latents
    [n, C, H, W] are n / B batches, one after another.
    """
    branches = 1 if guidance_scale is None else 2

    @torch.no_grad()
    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        copies = latents.shape[0] * branches // conditions["encoder_hidden_states"].shape[0]
        sample = scheduler.scale_model_input(torch.cat([latents] * branches), timestep)
        noise = model(
            sample,
            timestep.repeat(branches) if timestep.ndim else timestep,
            return_dict=False,
            **(conditions if copies == 1 else _repeated(conditions, branches, copies)),
        )[0]
        if guidance_scale is None:
            return noise
        unconditional, conditional = noise.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return predict


def _repeated(conditions: Mapping[str, Any], branches: int, copies: int) -> dict[str, Any]:
    """Tensors [branches x B, ...] -> [branches x copies x B, ...]."""

    def repeat(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _repeated(value, branches, copies)
        halves = value.chunk(branches)
        return torch.cat([half.repeat(copies, *[1] * (half.ndim - 1)) for half in halves])

    return {name: repeat(value) for name, value in conditions.items()}


def check_over_time(pipeline: StableDiffusionXLPipeline, config: DistriConfig, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for a scheduler, and UnsupportedError for an argument of the call, that `sample_over_time` does
    not know. What equals diffusers' default is no wish.
    """
    method, scheduler = config.parallelism, pipeline.scheduler
    if type(pipeline) is not StableDiffusionXLPipeline:
        raise UnsupportedError(
            f"parallelism {method} is for SDXL's text-to-picture pipeline alone, not for a {type(pipeline).__name__}; "
            "choose another parallelism"
        )
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"parallelism {method} needs the steps of DDIM and does not work with {type(scheduler).__name__}; set "
            "pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config), or choose another parallelism"
        )
    defaults = {name: each.default for name, each in inspect.signature(type(pipeline).__call__).parameters.items()}
    for name, value in arguments.items():
        wished = value is not None and (defaults.get(name) is None or value != defaults[name])
        if wished and name not in _SUPPORTED:
            raise UnsupportedError(f"{name} is not supported under parallelism {method}; choose another parallelism")
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise UnsupportedError(
            f"a UNet that takes the guidance scale as an input is not supported under parallelism {method}; "
            "choose another parallelism"
        )


def call_over_time(
    pipeline: StableDiffusionXLPipeline,
    config: DistriConfig,
    mesh: Mesh,
    *,
    output_type: str = "pil",
    return_dict: bool = True,
    **call: Any,
) -> Any:
    """What `pipeline(...)` returns, for a call that `check_over_time` has let pass: `sample_over_time`, decoded."""
    images: Any = sample_over_time(pipeline, config, mesh, **call)
    if output_type != "latent":
        kept = pipeline.vae.dtype  # SDXL's own is decoded in float32 and goes back, as diffusers has it
        try:
            images = pipeline.vae.decode(unscale(pipeline.vae, images), return_dict=False)[0]
        finally:
            pipeline.vae.to(kept)
        if pipeline.watermark is not None:
            images = pipeline.watermark.apply_watermark(images)
        images = pipeline.image_processor.postprocess(images, output_type=output_type)
    return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)


def sample_over_time(
    pipeline: StableDiffusionXLPipeline,
    config: DistriConfig,
    mesh: Mesh,
    *,
    height: int,
    width: int,
    guidance_scale: float,
    guided: bool,
    num_inference_steps: int = 50,
    num_images_per_prompt: int | None = 1,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor:
    """Final latents [B, 4, H/8, W/8] of a call that `check_over_time` has let pass, the same on every rank.

    others: prompts or their embeddings, as `encode_prompt` takes them; and defaults of no consequence.
    """
    device, unet = mesh.device, pipeline.unet.unet
    text = {"prompt": None} | {name: value for name, value in others.items() if name in _TEXT}
    embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(  # one for every picture
        **text, device=device, num_images_per_prompt=num_images_per_prompt or 1, do_classifier_free_guidance=guided
    )
    pipeline.scheduler.set_timesteps(num_inference_steps, device=device)
    latents = pipeline.prepare_latents(
        len(embeds), unet.config.in_channels, height, width, embeds.dtype, device, generator, latents
    )
    size = (height, width)
    time_ids = pipeline._get_add_time_ids(size, (0, 0), size, embeds.dtype, int(pooled.shape[-1])).to(device)
    if guided:
        embeds, pooled = torch.cat([negative, embeds]), torch.cat([negative_pooled, pooled])
    conditions = {
        "encoder_hidden_states": embeds,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids.repeat(len(embeds), 1)},
    }
    predict = guided_unet(unet, pipeline.scheduler, conditions, guidance_scale if guided else None)
    with pipeline.progress_bar(total=num_inference_steps) as bar:
        scheduler = pipeline.scheduler
        walk = METHODS[config.parallelism].denoise(latents, scheduler, scheduler.timesteps, predict, config, mesh)
        for step in walk:
            latents = step.latents
            bar.update(step.converged - bar.n)
    return latents
