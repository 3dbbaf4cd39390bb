"""The arguments of a pipeline's call: all known by name, none silently ignored, and a picture size that the model and
the ranks can do. Running the call is pipelines.py's business.
"""

from __future__ import annotations

import inspect
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image

from distri_engine.bands import check_cut
from distri_engine.config import DistriConfig, check_int, check_size
from distri_engine.errors import UnsupportedError
from distri_engine.mesh import Mesh

REFUSED_ARGUMENTS = ("ip_adapter_image", "ip_adapter_image_embeds", "pag_scale", "pag_adaptive_scale")
_REFUSED_ATTENTION = ("ip_adapter_masks", "gligen")  # in cross_attention_kwargs
_LEGACY = ("callback", "callback_steps")  # accepted by every pipeline, in no signature


def name_arguments(pipe: Any, config: DistriConfig, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call of the diffusers pipeline `pipe` was given, by name, with the defaults that depend on `config`.

    Raises UnsupportedError for what has no parallel form, and TypeError for names that diffusers would swallow.
    """
    signature = inspect.signature(type(pipe).__call__)
    call = dict(signature.bind_partial(pipe, *args, **kwargs).arguments)
    del call["self"]
    call |= (others := call.pop("kwargs", {}))
    _check_kinds(call)
    attention = call.get("cross_attention_kwargs") or {}
    refused = [name for name in REFUSED_ARGUMENTS if call.get(name) is not None]
    for name in refused + [name for name in _REFUSED_ATTENTION if name in attention]:
        raise UnsupportedError(f"{name} is not supported under patch parallelism; use the diffusers pipeline for it")
    for name in others:
        if name not in _LEGACY:
            raise TypeError(f"{name} is not an argument of {type(pipe).__name__}; see its documentation")
    default = signature.parameters["guidance_scale"].default
    call.setdefault("guidance_scale", default if config.do_classifier_free_guidance else 1.0)
    for name, value in zip(("height", "width"), _default_size(pipe, config, call), strict=True):
        if name in signature.parameters and call.get(name) is None:
            call[name] = value
    return call


def check_arguments(pipe: Any, config: DistriConfig, mesh: Mesh, call: dict[str, Any]) -> bool:
    """Whether the UNet runs both guidance branches; ValueError for what the model or the ranks cannot do."""
    multiple = pipe.unet.unit * pipe.vae_scale_factor
    height, width = _default_size(pipe, config, call)
    if call.get("latents") is None:  # which count, whatever else is said
        height, width = call.get("height", height), call.get("width", width)
    check_size("height", height, multiple)
    check_size("width", width, multiple)
    guidance_scale = call["guidance_scale"]
    if not isinstance(guidance_scale, Real):
        raise ValueError(f"guidance_scale {guidance_scale!r} is not a number; 5 is usual")
    guidance_scale = float(guidance_scale)
    if guidance_scale > 1 and not config.do_classifier_free_guidance:
        raise ValueError(f"guidance_scale {guidance_scale} needs do_classifier_free_guidance=True in the DistriConfig")
    guided = guidance_scale > 1 and pipe.unet.config.time_cond_proj_dim is None
    check_cut(height, width, mesh.axes(config, guided=guided).patch_size, config, multiple)
    if pipe.scheduler.config.get("noise_sampler_seed", 0) is None:
        raise ValueError(
            f"{type(pipe.scheduler).__name__} draws its noise apart on every rank; give it a noise_sampler_seed"
        )
    if call.get("prompt") is None and call.get("prompt_embeds") is None:
        raise ValueError("the prompt is missing; pass prompt or prompt_embeds")
    if pipe.vae is None and call.get("output_type") != "latent":
        raise ValueError('a picture needs a vae, and this pipeline has none; pass output_type="latent"')
    if pipe.vae is None and "strength" in inspect.signature(type(pipe).__call__).parameters:
        raise ValueError("starting from a picture needs a vae, and this pipeline has none; load one, then set vae")
    return guided


def _check_kinds(call: dict[str, Any]) -> None:
    """ValueError for values that diffusers would stumble over late, or not at all; NumPy's counts become Python's."""
    for name in ("num_inference_steps", "num_images_per_prompt"):
        if call.get(name) is not None:
            call[name] = check_int(name, call[name], 1, 1000)
    if isinstance(call.get("prompt"), (list, tuple)) and not call["prompt"]:
        raise ValueError("the list of prompts is empty; give at least one prompt")
    generators = call.get("generator")
    for generator in generators if isinstance(generators, (list, tuple)) else [generators]:
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator {generator!r} is no torch.Generator; pass torch.Generator().manual_seed(7)")
    attention = call.get("cross_attention_kwargs")
    if attention is not None and not isinstance(attention, dict):
        raise ValueError(f'cross_attention_kwargs {attention!r} is not a dictionary; write {{"scale": 0.5}}')
    for name in ("callback_on_step_end", "callback"):
        if call.get(name) is not None and not callable(call[name]):
            raise ValueError(f"{name} {call[name]!r} is not a function; see diffusers' documentation for its arguments")
    latents = call.get("latents")
    if latents is not None and (not isinstance(latents, torch.Tensor) or latents.ndim != 4):
        shape = list(latents.shape) if isinstance(latents, torch.Tensor) else f"{latents!r:.80}"
        raise ValueError(f"latents {shape} are not a tensor of 4 dimensions: images, channels, height / 8, width / 8")


def _default_size(pipe: Any, config: DistriConfig, call: dict[str, Any]) -> tuple[int, int]:
    """(height, width) in pixels of what the UNet will see, if the call does not say."""
    for name in ("latents", "image"):
        if call.get(name) is not None:
            return picture_size(call[name], pipe.vae_scale_factor, pipe.unet.config.out_channels)
    return config.height, config.width


def picture_size(picture: Any, scale: int, latent_channels: int) -> tuple[int, int]:
    """(height, width) in pixels at which diffusers works on `picture`: rounded down to multiples of `scale`.

    picture: PIL, array [.., H, W, C], tensor [.., C, H, W], where C == latent_channels means latents of H x W cells, or
    a list of them. Raises ValueError for anything else.
    """
    while isinstance(picture, (list, tuple)) and picture:
        picture = picture[0]
    if isinstance(picture, Image.Image):
        size = (picture.height, picture.width)
    elif isinstance(picture, torch.Tensor) and picture.ndim in (3, 4):
        cells = scale if picture.shape[-3] == latent_channels else 1
        size = (picture.shape[-2] * cells, picture.shape[-1] * cells)
    elif isinstance(picture, np.ndarray) and picture.ndim in (3, 4):
        size = (picture.shape[-3], picture.shape[-2])
    else:
        raise ValueError(f"a picture is a PIL image, an array or a tensor, or a list of them, not {picture!r:.80}")
    return size[0] - size[0] % scale, size[1] - size[1] % scale
