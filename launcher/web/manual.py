"""What the API says of its parameters, for programs that read it: MCP clients, and whoever asks for help. What they do
is decided by DistriConfig and GenerationRequest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

PARAMETERS = {
    "prompt": "What the picture shows, in English, at most 2000 characters.",
    "negative_prompt": "What it should not show.",
    "height": "Pixels, a multiple of 32; null: the model's own size.",
    "width": "Pixels, a multiple of 32; null: the model's own size.",
    "steps": "Denoising steps, 1 to 1000; more are finer and slower.",
    "guidance_scale": "Strength of the prompt, 0 to 100; at most 1: no guidance, and half of the work.",
    "seed": "0 to 4294967295, the same seed gives the same picture; null: random.",
    "scheduler": "ddim, euler or dpm-solver.",
    "parallelism": "auto, patch (DistriFusion), naive_patch, tensor, paradigms or single.",
    "ranks": "How many devices share the picture; null: all, or with parallelism auto as many as are fastest.",
    "mode": "What may be one step old: full_sync, sync_gn, stale_gn, corrected_async_gn, separate_gn, no_sync, "
    "extrapolated, or auto: what was measured best for this model.",
    "warmup_steps": "Synchronous steps after the first, or auto: until activations hardly change.",
    "warmup_threshold": "By how much they may change when warmup_steps auto ends, relative L2.",
    "extrapolation": "Factor of mode extrapolated, or three: keys and values, halos, moments (else 0).",
    "extrapolation_memory": "Its second factor, likewise.",
    "split_scheme": "How naive patches are cut: row, col or alternate.",
    "split_batch": "Whether half of the devices take each guidance branch; null: as parallelism decides.",
    "picard_window": "Timesteps that paradigms refines at once; null: one a rank.",
    "picard_tolerance": "How far they may still move, relative to their noise; 0 is exact.",
    "metadata": "Whether the PNG carries its settings.",
    "image": "A picture to start from, as a data URI (PNG, JPEG or WebP, at most 2.9 MB), scaled and cut to the size; "
    "null: from noise.",
    "strength": "With image: how far to go from it, above 0 to 1; so much of the steps is made.",
}


def described(function: Function) -> Function:
    """`function` with a line for each of its parameters in its docstring, as Gradio reads them."""
    names = [name for name in inspect.signature(function).parameters if name in PARAMETERS]
    lines = [f"    {name}: {PARAMETERS[name]}" for name in names]
    function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
    return function
