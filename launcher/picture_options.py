"""The options of a picture on the command line, and the request and config that they make. `generate` and the commands
that make many pictures share them; which ranks, device and model is the business of options.py.
"""

from __future__ import annotations

import argparse
from typing import Any

from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.request import GenerationRequest
from launcher.options import factors, number


def add_request_options(parser: argparse.ArgumentParser, *, steps: int | None = None) -> None:
    """What `request_of` reads."""
    request = GenerationRequest(prompt="-")  # for the defaults
    parser.add_argument("--negative-prompt", default="", help="what it should not show")
    parser.add_argument("--height", type=int, help="pixels (default: the model's size)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's size)")
    parser.add_argument("--steps", type=int, default=steps or request.steps, help="denoising (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=request.guidance_scale, help="(default: %(default)s)")
    parser.add_argument("--scheduler", default=request.scheduler.value, help="ddim, euler or dpm-solver")


def add_picture_options(parser: argparse.ArgumentParser, *, steps: int | None = None) -> None:
    """What a picture is made like, but for its prompt and seed. `steps` is another default than GenerationRequest's."""
    add_request_options(parser, steps=steps)
    config = DistriConfig()  # for the defaults
    parser.add_argument("--parallelism", default=config.parallelism.value, help=", ".join(Parallelism))
    parser.add_argument("--mode", default=config.mode.value, help=f"{', '.join(SyncMode)} (default: %(default)s)")
    parser.add_argument(
        "--warmup-steps", default=str(config.warmup_steps), metavar="N|auto", help="(default: %(default)s)"
    )
    parser.add_argument("--warmup-threshold", type=float, default=config.warmup_threshold, help="ends auto")
    parser.add_argument(
        "--extrapolation",
        default="0.5",
        metavar="A|A,A,A",
        help="factor of mode extrapolated, or three: keys and values, halos, moments, else 0 (default: %(default)s)",
    )
    parser.add_argument(
        "--extrapolation-memory", default="0.5", metavar="M|M,M,M", help="the same (default: %(default)s)"
    )
    parser.add_argument("--split-scheme", default=config.split_scheme.value, help="row, col or alternate")
    parser.add_argument(
        "--picard-window", type=int, help="timesteps that paradigms refines at once (default: one a rank)"
    )
    parser.add_argument(
        "--picard-tolerance",
        type=float,
        default=config.picard_tolerance,
        help="how far paradigms lets them move, relative to their noise; 0 is exact (default: %(default)s)",
    )
    parser.add_argument("--no-split-batch", action="store_true", help="both guidance branches on every rank")


def request_of(words: argparse.Namespace, **what: Any) -> GenerationRequest:
    """The picture that was asked for; `what` is its prompt, and its seed if it has one. Raises ValueError."""
    return GenerationRequest(
        negative_prompt=words.negative_prompt,
        height=words.height,
        width=words.width,
        steps=words.steps,
        guidance_scale=words.guidance_scale,
        scheduler=words.scheduler,
        **what,
    )


def config_of(words: argparse.Namespace) -> DistriConfig:
    """How it is parallelised. Raises ValueError."""
    return DistriConfig(
        parallelism=words.parallelism,
        mode=words.mode,
        warmup_steps=number(words.warmup_steps, int),
        warmup_threshold=words.warmup_threshold,
        extrapolation=factors(words.extrapolation),
        extrapolation_memory=factors(words.extrapolation_memory),
        split_scheme=words.split_scheme,
        split_batch=not words.no_split_batch,
        picard_window=words.picard_window,
        picard_tolerance=words.picard_tolerance,
    )
