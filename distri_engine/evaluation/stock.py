"""The yardstick: a picture by diffusers itself, one process, one device, nothing of this engine's in it. When it is
asked for one, and with what it is compared, is the business of the benchmark command.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from distri_engine.engine import SCHEDULERS
from distri_engine.loading import load_pipeline
from distri_engine.mesh import device_name, resolve_device
from distri_engine.request import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class StockPicture:
    """What a call made, and what it took."""

    images: list[Any]  # PIL pictures
    seconds: dict[str, float]  # "text", "denoise", "decode"
    step_seconds: list[float]


class StockDiffusers:
    """`StableDiffusionXLPipeline.from_pretrained`, in the type that the engine takes on this device."""

    def __init__(self, model: str, *, device: str = "auto") -> None:
        """Load the weights. Raises ModelError for a model that cannot be opened."""
        self.device = resolve_device(device)
        self._pipe = load_pipeline(model, self.device, use_safetensors=True, add_watermarker=False)
        self._pipe.set_progress_bar_config(disable=True)

    @property
    def device_name(self) -> str:
        """For people."""
        return device_name(self.device)

    def generate(self, request: GenerationRequest, *, decode: bool = True) -> StockPicture:
        """The pictures of a resolved `request`, none without `decode`.

        The call is the one that every user makes. When its stages end is read off a clock at the UNet's first call and
        in diffusers' own callback after each step.
        """
        pipe, marks = self._pipe, [self._now()]
        scheduler = SCHEDULERS[request.scheduler]
        if type(pipe.scheduler) is not scheduler:
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config)

        def text_is_done(*_: Any) -> None:
            marks.append(self._now())
            listener.remove()

        def step_is_done(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            marks.append(self._now())
            return tensors

        listener = pipe.unet.register_forward_pre_hook(text_is_done)
        images = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            num_images_per_prompt=request.images,
            generator=torch.Generator().manual_seed(request.seed or 0),
            output_type="pil" if decode else "latent",
            callback_on_step_end=step_is_done,
        ).images
        end = self._now()
        began, text, *steps = marks
        return StockPicture(
            images=images if decode else [],
            seconds={"text": text - began, "denoise": steps[-1] - text, "decode": end - steps[-1]},
            step_seconds=[done - start for start, done in pairwise([text, *steps])],
        )

    def _now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
