"""The engine as a service: one loaded model that makes one picture after another, each as a stream of events that can
be stopped after any step. Who asks, and what becomes of the events, is the launcher's business.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from distri_engine.bands import check_bands, used_ranks
from distri_engine.config import DistriConfig, TextEncoderOn, check_choice, check_size
from distri_engine.errors import MeshError, ModelError
from distri_engine.from_picture import noisy_latents
from distri_engine.load import load_of
from distri_engine.loading import load_pipeline
from distri_engine.mesh import Mesh, device_name, resolve_device
from distri_engine.methods import METHODS, Advance
from distri_engine.preview import LatentPreview
from distri_engine.request import GenerationRequest, Scheduler
from distri_engine.sampling import guided_unet
from distri_engine.step import Phase, Step
from distri_engine.telemetry import EngineInfo, Event, Finished, Prepared, StepDone
from distri_engine.unet import ParallelUNet
from distri_engine.vae import ParallelDecoder

DEMO_MODEL = Path(__file__).resolve().parents[1] / "assets" / "demo_model"
SCHEDULERS = {
    Scheduler.DDIM: DDIMScheduler,
    Scheduler.EULER: EulerDiscreteScheduler,
    Scheduler.DPM_SOLVER: DPMSolverMultistepScheduler,
}
_MIB = 2**20


@dataclass(frozen=True)
class _Seat:
    """A rank's place among those that make a picture."""

    mesh: Mesh
    unet: ParallelUNet
    decoder: ParallelDecoder

    def forget(self) -> None:
        """Free the buffers."""
        self.unet.forget()
        self.decoder.forget()


class Engine:
    """One model on one rank. `attach` it to a mesh, then call `generate` on every rank with the same arguments."""

    def __init__(
        self, model: str, *, device: str = "auto", rank: int = 0, world_size: int = 1, text_encoder_on: str = "rank0"
    ) -> None:
        """Load the weights (seconds); no process group is touched. Rank 0 also loads the text encoders and tells the
        others what it read; with text_encoder_on="all" everybody loads them and reads for itself.

        Raises ModelError for a model that cannot be opened, ValueError or MeshError for a device that cannot be had.
        """
        self.device = resolve_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self._reads_alone = check_choice("text_encoder_on", text_encoder_on, TextEncoderOn) is TextEncoderOn.ALL
        self._pipe = load_pipeline(model, self.device, text=rank == 0 or self._reads_alone, use_safetensors=True)
        self._pipe.set_progress_bar_config(disable=True)
        self._unet = self._pipe.unet
        if self._unet.config.time_cond_proj_dim is not None:
            raise ModelError(
                f"the UNet of {model} takes the guidance scale as an input, which is not supported here; "
                "choose another model, or run this one by DistriSDXLPipeline"
            )
        self._preview = LatentPreview.of(self._pipe.vae) if rank == 0 else None
        self._load = load_of(self.device)
        self._mesh: Mesh | None = None
        self._seats: dict[int, _Seat] = {}  # by the number of ranks that work
        demo = Path(model).resolve() == DEMO_MODEL
        levels = len(self._unet.config.block_out_channels)
        self.info = EngineInfo(
            name="embedded demo model" if demo else model,
            path=model,
            demo=demo,
            default_size=self._unet.config.sample_size * self._pipe.vae_scale_factor,
            size_multiple=self._pipe.vae_scale_factor * 2 ** (levels - 1),
            max_pixels=4096 * 4096 if self.device.type == "cuda" else 1024 * 1024,
            device=device_name(self.device),
        )

    def attach(self, mesh: Mesh) -> None:
        """Take a place in a new generation of the group."""
        self._mesh = mesh
        self._seats = {mesh.size: self._seat_on(mesh)}

    def detach(self) -> None:
        """Let go of the group: buffers are freed and messages in flight forgotten, so that peers notice."""
        for seat in self._seats.values():
            seat.forget()
        if self._mesh is not None:
            self._mesh.close()
        self._mesh, self._seats = None, {}

    def _seat_on(self, mesh: Mesh) -> _Seat:
        unet, decoder = ParallelUNet(self._unet, DistriConfig(), mesh), ParallelDecoder(self._pipe.vae, mesh)
        return _Seat(mesh=mesh, unet=unet, decoder=decoder)

    def _seat(self, mesh: Mesh, count: int) -> _Seat:
        """The place among the first `count` ranks of `mesh`. Those among other numbers of them keep their trees of
        modules, which share all weights, and free their buffers.
        """
        for other, seat in self._seats.items():
            if count > 1 and other not in (1, count):
                seat.forget()
        if count not in self._seats:
            self._seats[count] = self._seat_on(mesh if count == mesh.size else mesh.first(count))
        return self._seats[count]

    def check(self, request: GenerationRequest, config: DistriConfig, ranks: int) -> None:
        """Raise ValueError, with the number, the rule and the remedy, if this model on `ranks` cannot do `request`."""
        if request.height is None or request.width is None or request.seed is None:
            raise ValueError("the request has no size or seed yet; call request.resolved() on rank 0 first")
        check_size("height", request.height, self.info.size_multiple)
        check_size("width", request.width, self.info.size_multiple)
        if request.height * request.width > self.info.max_pixels:
            raise ValueError(
                f"{request.width} x {request.height} is {request.width * request.height} pixels, "
                f"the limit here is {self.info.max_pixels}; choose a smaller size"
            )
        if request.guided and not config.do_classifier_free_guidance:
            raise ValueError(
                f"guidance_scale {request.guidance_scale:g} needs do_classifier_free_guidance=True; "
                "set that, or a guidance_scale of at most 1"
            )
        check_bands(request, config, ranks, self.info.size_multiple)

    def generate(self, request: GenerationRequest, config: DistriConfig, *, decode: bool = True) -> Iterator[Event]:
        """Make the pictures of a resolved `request`: yields Prepared, one StepDone a step, and Finished, which holds no
        pictures without `decode`.

        There are at most as many steps as timesteps; with paradigms a step is a Picard iteration, and fewer may do.
        Nothing is exchanged before Prepared. Closing the iterator cancels; all ranks must close it after the same step.
        """
        if self._mesh is None:
            raise MeshError("the engine is not attached to a mesh; call attach() first")
        self.check(request, config, self._mesh.size)
        method, used = METHODS[config.parallelism], used_ranks(config, self._mesh.size)
        works = self._mesh.rank < used
        seat = self._seat(self._mesh, used)
        mesh, unet = seat.mesh, seat.unet

        start = time.perf_counter()
        self._load.start()
        scheduler, timesteps = self._schedule(request)
        text = self._encode(request) if works and (mesh.rank == 0 or self._reads_alone) else None
        latents = self._noise(request)
        if request.image is not None and mesh.rank == 0:
            latents = noisy_latents(self._pipe, request, timesteps)
        unet.begin(config, guided=request.guided)
        text_seconds = time.perf_counter() - start
        yield self._prepared(request, config, unet) if works else self._resting()

        start = time.perf_counter()
        if works and not self._reads_alone:
            text = mesh.broadcast(text, self._unet.dtype)
        if works and request.image is not None:
            (latents,) = mesh.broadcast([latents] if mesh.rank == 0 else None, self._unet.dtype)
        conditions = self._conditions(request, text) if works else {}
        denoise_start = time.perf_counter()
        text_seconds += denoise_start - start
        predict = guided_unet(
            self._unet if method.over_time else unet,
            scheduler,
            conditions,
            request.guidance_scale if request.guided else None,
        )
        if works:
            walk = method.denoise(latents, scheduler, timesteps, predict, config, mesh)
        else:
            walk = self._rest(latents, len(timesteps))
        for index, (advance, wall) in enumerate(self._timed(walk, mesh)):
            latents = advance.latents
            try:
                yield StepDone(
                    step=index,
                    steps=len(timesteps),
                    converged=advance.converged,
                    evaluations=advance.evaluations,
                    phase=unet.clock.step.phase.value,
                    compute_ms=1e3 * (wall - mesh.meter.wait_s) if works else 0.0,
                    wait_ms=1e3 * mesh.meter.wait_s,
                    sent_bytes=mesh.meter.sent_bytes,
                    memory_mb=self._memory_mb(),
                    buffer_mb=unet.buffer_bytes() / _MIB if method.displaced else 0.0,
                    load=self._load.percent(),
                    change=unet.moved() if works and method.displaced else None,
                    latents=advance.heading if mesh.rank == 0 else None,
                )
            except GeneratorExit:  # cancelled, on every rank after this step
                unet.end()
                raise
        unet.end()
        decode_start = time.perf_counter()
        picture = seat.decoder(latents) if works and decode else None
        images = [] if picture is None else self._pipe.image_processor.postprocess(picture, output_type="pil")
        yield Finished(
            images=images,
            seconds={
                "text": text_seconds,
                "denoise": decode_start - denoise_start,
                "decode": time.perf_counter() - decode_start,
            },
        )

    def preview(self, latents: torch.Tensor) -> Any:
        """A small PIL picture of `StepDone.latents`: [images, 4, H/8, W/8] -> W/8 x H/8 pixels. Rank 0, any thread."""
        assert self._preview is not None, "previews are made on rank 0"
        return self._preview(latents)

    # --- the flow: text, noise, step, decode

    def _schedule(self, request: GenerationRequest) -> tuple[Any, torch.Tensor]:
        """The sampler, and its timesteps [T] that are walked: the last ones, if there is a picture to start from."""
        scheduler = SCHEDULERS[request.scheduler].from_config(self._pipe.scheduler.config)
        scheduler.set_timesteps(request.steps, device=self.device)
        begin = len(scheduler.timesteps) - request.timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)  # or each step looks its timestep up, which stops a GPU
        self._pipe.scheduler = scheduler  # prepare_latents asks it for the noise's scale
        return scheduler, scheduler.timesteps[begin:]

    @torch.no_grad()
    def _encode(self, request: GenerationRequest) -> list[torch.Tensor]:
        parts = self._pipe.encode_prompt(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or None,
            device=self.device,
            num_images_per_prompt=request.images,
            do_classifier_free_guidance=request.guided,
        )
        embeds, negative, pooled, negative_pooled = parts
        if request.guided:  # unconditional first, as everywhere in diffusers
            embeds, pooled = torch.cat([negative, embeds]), torch.cat([negative_pooled, pooled])
        return [embeds, pooled]

    def _noise(self, request: GenerationRequest) -> torch.Tensor:
        generator = torch.Generator().manual_seed(request.seed or 0)  # on the CPU: the same noise on any device
        return self._pipe.prepare_latents(
            request.images,
            self._unet.config.in_channels,
            request.height,
            request.width,
            self._unet.dtype,
            self.device,
            generator,
        )

    def _conditions(self, request: GenerationRequest, text: list[torch.Tensor] | None) -> dict[str, Any]:
        assert text is not None
        embeds, pooled = (part.to(self.device, self._unet.dtype) for part in text)
        size = (request.height, request.width)
        time_ids = self._pipe._get_add_time_ids(size, (0, 0), size, self._unet.dtype, int(pooled.shape[-1]))
        return {
            "encoder_hidden_states": embeds,
            "added_cond_kwargs": {
                "text_embeds": pooled,
                "time_ids": time_ids.to(self.device).repeat(pooled.shape[0], 1),
            },
        }

    def _timed(self, walk: Iterator[Advance], mesh: Mesh) -> Iterator[tuple[Advance, float]]:
        """Every step of a walk with the seconds it took; the mesh's meter holds what it spent on peers."""
        while True:
            mesh.meter.reset()
            start = time.perf_counter()
            advance = next(walk, None)
            if advance is None:
                return
            self._synchronize()
            yield advance, time.perf_counter() - start

    def _rest(self, latents: torch.Tensor, steps: int) -> Iterator[Advance]:
        """The walk of a rank that is not used."""
        for index in range(steps):
            yield Advance(latents=latents, heading=latents, converged=index + 1, evaluations=0)

    # --- what a rank tells about itself

    def _resting(self) -> Prepared:
        return Prepared(memory_mb=self._memory_mb(), box=None, branch="none")

    def _prepared(self, request: GenerationRequest, config: DistriConfig, unet: ParallelUNet) -> Prepared:
        assert request.height is not None
        assert request.width is not None
        method, axes = unet.method, unet.axes
        scale = self._pipe.vae_scale_factor
        latent = (request.height // scale, request.width // scale)
        box = method.boxes(config, Step(0, Phase.SYNC), latent, self.info.size_multiple // scale, axes.patch_size)[
            axes.patch
        ]
        branch = ("unconditional", "conditional")[axes.cfg] if axes.cfg_size == 2 else "both"
        return Prepared(
            memory_mb=self._memory_mb(), box=box.pixels(scale), branch=branch if request.guided else "conditional"
        )

    def _memory_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / _MIB
        return psutil.Process().memory_info().rss / _MIB

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
