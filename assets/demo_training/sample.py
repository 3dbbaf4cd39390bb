"""A sheet of pictures from a pipeline folder, to look at.

python -m assets.demo_training.sample --pipeline build/demo/pipeline --output sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from PIL import Image

PROMPTS = (
    "a red house with a blue roof in a snowy field on a clear day",
    "a yellow sailboat on the sea at sunset with an orange sun",
    "a white lighthouse on green hills under a starry night sky",
    "a grey castle with purple towers on green hills at sunset under a clear sky",
    "a blue rocket above snowy brown mountains in the evening with a red sun",
    "a purple hot air balloon over the ocean in a storm in heavy rain",
    "an orange windmill on yellow fields in the early morning",
    "a red giant mushroom with white dots on green hills on a cloudy day",
    "a pink tree in a snowy field at dawn, snow is falling",
    "a white moon over purple mountains at night",
    "a yellow house in the desert on a clear day with a yellow sun",
    "a green castle by the sea at night with a white moon, fog",
)
SCHEDULERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm-solver": DPMSolverMultistepScheduler}
COLUMNS = 4


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a sheet of sample pictures.")
    parser.add_argument("--pipeline", type=Path, default=Path("assets/demo_model"))
    parser.add_argument("--output", type=Path, default=Path("sheet.png"))
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="ddim")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the others follow")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Make the sheet."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(options.pipeline, dtype=torch.float32)
    pipeline.scheduler = SCHEDULERS[options.scheduler].from_config(pipeline.scheduler.config)
    height, width = options.size
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height))
    for index, prompt in enumerate(PROMPTS):
        picture = pipeline(
            prompt,
            height=height,
            width=width,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            generator=torch.Generator().manual_seed(options.seed + index),
        ).images[0]
        sheet.paste(picture, (index % COLUMNS * width, index // COLUMNS * height))
    sheet.save(options.output)


if __name__ == "__main__":
    main(parse_options())
