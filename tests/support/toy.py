"""A stand-in for the engine: a few numbers travel over the process group in every step, and faults happen on request.
Prompts command it: "slow 50" (ms a step), "stride 3" (timesteps a step), "fail rank=1 step=3;", "kill rank=1 step=3;".
"""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from distri_engine.telemetry import EngineInfo, Event, Finished, Prepared, StepDone


class ToyEngine:
    """The surface of distri_engine.engine.Engine. Its picture depends on seed, size, steps and every exchange."""

    def __init__(self, model: str, device: str, rank: int, world_size: int) -> None:
        torch.set_num_threads(1)
        self.rank = rank
        self.info = EngineInfo(
            name="toy",
            path=model,
            demo=True,
            default_size=64,
            size_multiple=32,
            max_pixels=1024 * 1024,
            device="CPU",
        )
        self._mesh: Any = None

    def attach(self, mesh: Any) -> None:
        self._mesh = mesh

    def detach(self) -> None:
        self._mesh = None

    def preview(self, latents: torch.Tensor) -> Image.Image:
        return Image.new("RGB", (8, 8), (int(latents.abs().sum()) % 256, 0, 0))

    def generate(self, request: GenerationRequest, config: DistriConfig, *, decode: bool = True) -> Iterator[Event]:
        pace = float(m[1]) / 1000 if (m := re.search(r"slow (\d+)", request.prompt)) else 0.02
        stride = int(m[1]) if (m := re.search(r"stride (\d+)", request.prompt)) else 1
        mesh = self._mesh
        fault(request.prompt, mesh.rank, -1)
        state = torch.full((4,), float(request.seed % 1000))  # type: ignore[operator]
        rows = request.height // mesh.size  # type: ignore[operator]
        yield Prepared(memory_mb=1.0, box=(0, mesh.rank * rows, request.width or 0, (mesh.rank + 1) * rows))
        for step in range(math.ceil(request.timesteps / stride)):
            begin = time.perf_counter()
            time.sleep(pace)
            fault(request.prompt, mesh.rank, step)
            waited = time.perf_counter()
            part = state * (mesh.rank + 1)
            dist.all_reduce(part)
            state = part % 997 + step
            end = time.perf_counter()
            yield StepDone(
                step=step,
                steps=request.timesteps,
                converged=min((step + 1) * stride, request.timesteps),
                evaluations=stride,
                phase="sync" if step <= config.warmup_steps else "stale",
                compute_ms=1000 * (waited - begin),
                wait_ms=1000 * (end - waited),
                sent_bytes=part.nbytes,
                memory_mb=1.0,
                latents=state if mesh.rank == 0 else None,
            )
        fault(request.prompt, mesh.rank, request.timesteps)
        dist.all_reduce(state)
        colour = tuple(int(value) % 256 for value in state[:3])
        images = (
            [Image.new("RGB", (request.width or 0, request.height or 0), colour)] if mesh.rank == 0 and decode else []
        )
        yield Finished(images=images, seconds={"text": 0.0, "denoise": 0.1, "decode": 0.01})


def fault(prompt: str, rank: int, step: int) -> None:
    """Do what the prompt asks of this rank at this step (-1: preparing, `steps`: decoding)."""
    if f"fail rank={rank} step={step};" in prompt:
        raise RuntimeError(f"toy fault on rank {rank} at step {step}\nwith a second line")
    if f"kill rank={rank} step={step};" in prompt:
        os.kill(os.getpid(), signal.SIGKILL)
