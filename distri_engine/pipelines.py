"""DistriSDXLPipeline: diffusers' SDXL pipeline on all ranks of a torchrun group, with the usage of the original
DistriFusion. Serving requests one after another, with events and cancelling, is engine.py's business.
"""

from __future__ import annotations

import secrets
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput

from distri_engine.bands import check_cut
from distri_engine.config import DistriConfig, check_size
from distri_engine.errors import ModelError, UnsupportedError
from distri_engine.lora import skip_absent_text_encoders
from distri_engine.mesh import Mesh, open_mesh
from distri_engine.methods import METHODS
from distri_engine.sampling import check_over_time, sample_over_time
from distri_engine.unet import ParallelUNet
from distri_engine.vae import ParallelDecoder

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_TEXT_ARGUMENTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "clip_skip")
# In encode_prompt's order; every other one belongs to the unconditional branch.
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
    """One SDXL picture on all ranks. `pipeline` is the diffusers pipeline inside: what is not found here is read from
    it, and its components (scheduler, vae, ...) may be replaced here.
    """

    def __init__(
        self, pipeline: StableDiffusionXLPipeline, distri_config: DistriConfig, mesh: Mesh | None = None
    ) -> None:
        with ExitStack() as stack:
            self.mesh = stack.enter_context(open_mesh(distri_config)) if mesh is None else mesh
            self.distri_config = distri_config
            self.pipeline = pipeline
            skip_absent_text_encoders(pipeline)
            self.unet = pipeline.unet
            self._decoder = ParallelDecoder(pipeline.vae, self.mesh)
            # Leaves the group; at the latest when the pipeline or the program ends.
            self.close = weakref.finalize(self, stack.pop_all().close)

    @classmethod
    def from_pretrained(
        cls,
        *model_or_config: Any,
        distri_config: DistriConfig | None = None,
        pretrained_model_name_or_path: str = SDXL_BASE,
        **kwargs: Any,
    ) -> DistriSDXLPipeline:
        """Join the torchrun group and open a model on this rank's device; text encoders are loaded on rank 0 only.

        The config and the model may also come first, in either order: the original's is one way, diffusers' the other.
        kwargs go to diffusers' `from_pretrained`; `torch_dtype` and `dtype` mean the same.
        Raises ModelError or MeshError.
        """
        for value in model_or_config:
            if isinstance(value, DistriConfig):
                distri_config = value
            else:
                pretrained_model_name_or_path = str(value)
        if distri_config is None:
            raise TypeError("from_pretrained needs distri_config=DistriConfig(...)")
        dtype = kwargs.pop("torch_dtype", kwargs.pop("dtype", None))
        with ExitStack() as stack:
            mesh = stack.enter_context(open_mesh(distri_config))
            pipe = load_pipeline(pretrained_model_name_or_path, mesh.device, dtype, text=mesh.rank == 0, **kwargs)
            self = cls(pipe, distri_config, mesh)
            self.close = weakref.finalize(self, stack.pop_all().close)
        return self

    @torch.no_grad()
    def prepare(self) -> None:
        """Run the warm-up steps and the first stale one at the configured size on an empty text, so that the first
        picture finds every buffer allocated.
        """
        unet = self.pipeline.unet
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        text, pool = torch.zeros(1, 77, unet.config.cross_attention_dim), torch.zeros(1, pooled)
        scheduler, bar = self.pipeline.scheduler, getattr(self.pipeline, "_progress_bar_config", {})
        self.pipeline.scheduler = type(scheduler).from_config(scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)
        self(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            pooled_prompt_embeds=pool,
            negative_pooled_prompt_embeds=pool,
            num_inference_steps=self.distri_config.warmup_steps + 2,
            output_type="latent",
        )
        self.pipeline.scheduler = scheduler
        self.pipeline.set_progress_bar_config(**bar)

    @torch.no_grad()
    def __call__(self, prompt: str | list[str] | None = None, **kwargs: Any) -> Any:
        """What `StableDiffusionXLPipeline.__call__` accepts; the pictures are returned on every rank.

        height and width default to the config's. Without `generator` the ranks agree on a random seed.
        Raises ValueError for wrong input, UnsupportedError for what has no parallel form, and MeshError on the other
        ranks for text that rank 0 cannot encode.
        """
        for name in _UNSUPPORTED:
            if kwargs.get(name) is not None:
                raise UnsupportedError(
                    f"{name} is not supported under patch parallelism; use the diffusers pipeline for it"
                )
        config = self.distri_config
        over_time = METHODS[config.parallelism].over_time
        if over_time:
            check_over_time(self.pipeline, config, kwargs)
        height, width = (
            getattr(config, name) if kwargs.get(name) is None else kwargs[name] for name in ("height", "width")
        )
        kwargs |= {"height": height, "width": width}
        kwargs.setdefault("guidance_scale", 5.0 if config.do_classifier_free_guidance else 1.0)
        guided = self._check(height, width, kwargs["guidance_scale"])
        output_type, return_dict = kwargs.pop("output_type", "pil"), kwargs.pop("return_dict", True)
        kwargs |= self._embeddings(prompt, kwargs, guided=guided)
        if kwargs.get("generator") is None:
            kwargs["generator"] = torch.Generator().manual_seed(self._agree_on_seed())

        unet = self.pipeline.unet
        unet.begin(config.replace(height=height, width=width), guided=guided)
        if over_time:
            latents = sample_over_time(self.pipeline, config, self.mesh, guided=guided, **kwargs)
        else:
            latents = self.pipeline(output_type="latent", **kwargs).images
        unet.end()
        images = latents if output_type == "latent" else self._picture(latents, output_type)
        return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)

    def _check(self, height: Any, width: Any, guidance_scale: Any) -> bool:
        """Whether the UNet runs both guidance branches; ValueError for what the model or the ranks cannot do."""
        unet, config = self.pipeline.unet, self.distri_config
        multiple = unet.unit * self.pipeline.vae_scale_factor
        check_size("height", height, multiple)
        check_size("width", width, multiple)
        if not isinstance(guidance_scale, (int, float)):
            raise ValueError(f"guidance_scale {guidance_scale!r} is not a number; 5 is usual")
        if guidance_scale > 1 and not config.do_classifier_free_guidance:
            raise ValueError(
                f"guidance_scale {guidance_scale} needs do_classifier_free_guidance=True in the DistriConfig"
            )
        guided = guidance_scale > 1 and unet.config.time_cond_proj_dim is None
        check_cut(height, width, self.mesh.axes(config, guided=guided).patch_size, config, multiple)
        return guided

    def _embeddings(self, prompt: Any, kwargs: dict[str, Any], *, guided: bool) -> dict[str, Any]:
        """Encode the text on rank 0 and tell it to the others; leaves `kwargs` without the text."""
        text = {"prompt": prompt} | {name: kwargs.pop(name, None) for name in _TEXT_ARGUMENTS[1:]}
        given = {name: kwargs.pop(name, None) for name in _EMBEDDINGS}
        if prompt is None and given["prompt_embeds"] is None:
            raise ValueError("the prompt is missing; pass prompt or prompt_embeds")
        names = _EMBEDDINGS if guided else _EMBEDDINGS[::2]
        encoded: list[torch.Tensor] | None = None
        if self.mesh.rank == 0:
            scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale")
            device = self.mesh.device
            try:
                parts = self.pipeline.encode_prompt(
                    **text, **given, device=device, do_classifier_free_guidance=guided, lora_scale=scale
                )
                encoded = [part for name, part in zip(_EMBEDDINGS, parts, strict=True) if name in names]
            except Exception as error:
                self.mesh.refuse(f"{type(error).__name__}: {error}")
                raise
        told = self.mesh.broadcast(encoded, self.pipeline.unet.dtype)
        return dict(zip(names, told, strict=True))

    def _agree_on_seed(self) -> int:
        seed = torch.tensor([float(secrets.randbelow(2**32))], dtype=torch.float64)
        return int(self.mesh.broadcast([seed] if self.mesh.rank == 0 else None, torch.float64)[0].item())

    def _picture(self, latents: torch.Tensor, output_type: str) -> Any:
        if self._decoder.vae is not self.pipeline.vae:
            self._decoder = ParallelDecoder(self.pipeline.vae, self.mesh)
        picture = self._decoder(latents, on_every_rank=True)
        if self.pipeline.watermark is not None:
            picture = self.pipeline.watermark.apply_watermark(picture)
        return self.pipeline.image_processor.postprocess(picture, output_type=output_type)

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":  # not yet set: __init__ has failed
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        pipeline = self.__dict__.get("pipeline")
        if pipeline is None or name not in pipeline.components:
            super().__setattr__(name, value)
        elif name == "unet" and not isinstance(value, ParallelUNet):
            pipeline.unet = ParallelUNet(value, self.distri_config, self.mesh)
        else:
            setattr(pipeline, name, value)
