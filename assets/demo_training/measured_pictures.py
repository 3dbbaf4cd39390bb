"""Makes the pictures that measure.py looks at, many captions in one batch, on the ranks of a torchrun group: together
by one of distri_engine's methods, or each rank its share of the captions with plain diffusers.

    torchrun --nproc-per-node 2 -m assets.demo_training.measured_pictures '{"name": ...}'
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image

from distri_engine import DistriConfig, DistriSDXLPipeline

SCHEDULERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm-solver": DPMSolverMultistepScheduler}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which pictures to make, and how."""

    pipeline: str
    folder: str  # 0000.png and so on go there
    captions: list[str]  # seeds are their numbers
    negative: str = ""  # prompt, of all
    steps: int = 30
    guidance_scale: float = 5.0
    scheduler: str = "ddim"
    height: int = 256
    width: int = 256
    batch: int = 20
    config: dict[str, Any] | None = field(default=None)  # of DistriConfig; None: plain diffusers


def make(task: Task) -> None:
    """Make those that are not there yet."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1)
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    todo = [index for index in range(len(task.captions)) if not (folder / f"{index:04d}.png").exists()]
    pipeline: Any
    if task.config is None:
        todo = todo[rank::ranks]
        pipeline = StableDiffusionXLPipeline.from_pretrained(task.pipeline, dtype=torch.float32)
    else:
        config = DistriConfig(height=task.height, width=task.width, split_batch=False, **task.config)
        pipeline = DistriSDXLPipeline.from_pretrained(config, task.pipeline, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[task.scheduler].from_config(pipeline.scheduler.config)
    for first in range(0, len(todo), task.batch):
        some = todo[first : first + task.batch]
        made = pipeline(
            prompt=[task.captions[index] for index in some],
            negative_prompt=[task.negative] * len(some) if task.negative else None,
            height=task.height,
            width=task.width,
            num_inference_steps=task.steps,
            guidance_scale=task.guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in some],
        ).images
        if task.config is None or rank == 0:
            for index, picture in zip(some, made, strict=True):
                _keep(picture, folder / f"{index:04d}.png")


def _keep(picture: Image.Image, file: Path) -> None:
    writing = file.with_suffix(f".{os.getpid()}.png")
    picture.save(writing)
    writing.replace(file)


if __name__ == "__main__":
    make(Task(**json.loads(sys.argv[1])))
