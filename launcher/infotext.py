"""The settings of a picture as the text that other programs keep in a PNG's `parameters` chunk. Which file carries it,
and what else does, is png.py's business.
"""

from __future__ import annotations

from distri_engine.bands import used_ranks
from distri_engine.config import DistriConfig, Parallelism, SyncMode, check_factors
from distri_engine.request import GenerationRequest

SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpm-solver": "DPM++ 2M"}


def write(request: GenerationRequest, config: DistriConfig, *, model: str, ranks: int) -> str:
    """Prompt, negative prompt, and one line of settings, as A1111's web UI writes them. `ranks`: of the group."""
    negative = [f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else []
    settings = {
        "Steps": request.steps,
        "Sampler": SAMPLERS[request.scheduler],
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
        "Parallelism": config.parallelism.value,
        "Mode": config.mode.value,
        "Warm-up": config.warmup_steps,
        "Split scheme": config.split_scheme.value,
        "Split batch": config.split_batch,
        "Ranks": used_ranks(config, ranks),
    }
    if config.parallelism is Parallelism.PATCH and config.mode is SyncMode.EXTRAPOLATED:
        for name, title in (("extrapolation", "Extrapolation"), ("extrapolation_memory", "Extrapolation memory")):
            settings[title] = " ".join(f"{factor:g}" for factor in check_factors(name, getattr(config, name), 2))
    if config.parallelism is Parallelism.PARADIGMS:
        settings["Picard window"] = config.picard_window or settings["Ranks"]
        settings["Picard tolerance"] = f"{config.picard_tolerance:g}"
    return "\n".join([request.prompt, *negative, ", ".join(f"{name}: {value}" for name, value in settings.items())])
