"""DistriSDXLPipeline: diffusers' SDXL pipeline on all ranks of a torchrun group, with the usage of the original
DistriFusion. Serving requests one after another, with events and cancelling, is engine.py's business.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput

from distri_engine.config import DistriConfig, check_size
from distri_engine.errors import ModelError, UnsupportedError
from distri_engine.mesh import Mesh, open_mesh
from distri_engine.unet import ParallelUNet
from distri_engine.vae import ParallelDecoder

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_TEXT_ARGUMENTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "clip_skip")
_EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_UNSUPPORTED = ("ip_adapter_image", "ip_adapter_image_embeds")


def load_pipeline(
    model: str, device: torch.device, dtype: torch.dtype | None = None, *, text: bool = True, **kwargs: Any
) -> StableDiffusionXLPipeline:
    """Open a model folder or id as diffusers' SDXL pipeline on `device`; without `text` the text encoders stay on disk.

    dtype defaults to float16 on CUDA and float32 elsewhere. Raises ModelError if it cannot be opened.
    """
    folder = Path(model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{model} is not a model folder: it has no model_index.json; give a diffusers SDXL folder or a model id"
        )
    absent = {} if text else dict.fromkeys(_TEXT_PARTS)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    try:
        pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=dtype, **absent, **kwargs)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the model {model} cannot be opened as an SDXL pipeline: {reason}") from error
    return pipe.to(device)


class DistriSDXLPipeline:
    """One SDXL picture on all ranks. `pipeline` is the diffusers pipeline inside; unknown attributes are its own."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, distri_config: DistriConfig, mesh: Mesh) -> None:
        self.pipeline = pipeline
        self.distri_config = distri_config
        self.mesh = mesh
        self.decoder = ParallelDecoder(pipeline.vae, mesh)
        self.close: Callable[[], object] = mesh.close  # leave the group; no call may follow
        pipeline.unet = ParallelUNet(pipeline.unet, distri_config, mesh)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str = SDXL_BASE, *, distri_config: DistriConfig, **kwargs: Any
    ) -> DistriSDXLPipeline:
        """Join the torchrun group and open a model on this rank's device; text encoders are loaded on rank 0 only.

        kwargs go to diffusers' `from_pretrained`; `torch_dtype` and `dtype` mean the same.
        """
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        stack = ExitStack()
        mesh = stack.enter_context(open_mesh(distri_config))
        pipe = load_pipeline(pretrained_model_name_or_path, mesh.device, dtype, text=mesh.rank == 0, **kwargs)
        self = cls(pipe, distri_config, mesh)
        self.close = weakref.finalize(self, stack.close)  # also at exit, if nobody calls it
        return self

    def prepare(self, **kwargs: Any) -> None:
        """Make one throw-away step at the configured size, so that the first picture finds every buffer allocated."""
        self("", num_inference_steps=1, output_type="latent", generator=torch.Generator().manual_seed(0), **kwargs)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """As diffusers'."""
        self.pipeline.set_progress_bar_config(**kwargs)

    @torch.no_grad()
    def __call__(self, prompt: str | list[str] | None = None, **kwargs: Any) -> Any:
        """What `StableDiffusionXLPipeline.__call__` accepts; the pictures are returned on every rank.

        height and width default to the config's. Without `generator` and `latents` the ranks agree on a random seed.
        Raises ValueError for wrong input and UnsupportedError for what has no parallel form.
        """
        for name in _UNSUPPORTED:
            if kwargs.get(name) is not None:
                raise UnsupportedError(
                    f"{name} is not supported under patch parallelism; use the diffusers pipeline for it"
                )
        height = check_size("height", kwargs.pop("height", None) or self.distri_config.height)
        width = check_size("width", kwargs.pop("width", None) or self.distri_config.width)
        guided = kwargs.get("guidance_scale", 5.0) > 1 and self.pipeline.unet.config.time_cond_proj_dim is None
        output_type, return_dict = kwargs.pop("output_type", "pil"), kwargs.pop("return_dict", True)
        kwargs |= self._embeddings(prompt, kwargs, guided=guided)
        if kwargs.get("generator") is None and kwargs.get("latents") is None:
            kwargs["generator"] = torch.Generator().manual_seed(self._agree_on_seed())

        self.pipeline.unet.begin(self.distri_config.replace(height=height, width=width), guided=guided)
        latents = self.pipeline(height=height, width=width, output_type="latent", **kwargs).images
        self.pipeline.unet.end()
        images = latents if output_type == "latent" else self._picture(latents, output_type)
        return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)

    def _embeddings(self, prompt: Any, kwargs: dict[str, Any], *, guided: bool) -> dict[str, Any]:
        """Encode the text on rank 0 and tell it to the others; leaves `kwargs` without the text."""
        text = {"prompt": prompt} | {name: kwargs.pop(name, None) for name in _TEXT_ARGUMENTS[1:]}
        given = {name: kwargs.pop(name, None) for name in _EMBEDDINGS}
        encoded: list[torch.Tensor] | None = None
        if self.mesh.rank == 0:
            if prompt is None and given["prompt_embeds"] is None:
                raise ValueError("the prompt is missing; pass prompt or prompt_embeds")
            scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale")
            parts = self.pipeline.encode_prompt(
                **text, **given, device=self.mesh.device, do_classifier_free_guidance=guided, lora_scale=scale
            )
            encoded = [part for part in parts if part is not None]
        told = self.mesh.broadcast(encoded, self.pipeline.unet.dtype)
        names = _EMBEDDINGS if guided else ("prompt_embeds", "pooled_prompt_embeds")
        return dict(zip(names, told, strict=True))

    def _agree_on_seed(self) -> int:
        seed = torch.tensor([float(secrets.randbelow(2**32))], dtype=torch.float64)
        return int(self.mesh.broadcast([seed] if self.mesh.rank == 0 else None, torch.float64)[0].item())

    def _picture(self, latents: torch.Tensor, output_type: str) -> Any:
        picture = self.decoder(latents, on_every_rank=True)
        if self.pipeline.watermark is not None:
            picture = self.pipeline.watermark.apply_watermark(picture)
        return self.pipeline.image_processor.postprocess(picture, output_type=output_type)

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":  # not yet set: __init__ has failed
            raise AttributeError(name)
        return getattr(self.pipeline, name)
