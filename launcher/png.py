"""Pictures on disk: PNG files that carry their settings and appear whole or not at all. Which name they get is the
caller's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distri_engine.bands import used_ranks
from distri_engine.config import DistriConfig, Parallelism, SyncMode, check_factors
from distri_engine.request import GenerationRequest
from launcher.files import whole_file

PICTURES = "pictures"  # in the data folder: where the page's pictures go, and all that it serves of that folder

_SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpm-solver": "DPM++ 2M"}


def parameters(request: GenerationRequest, config: DistriConfig, *, model: str, ranks: int) -> str:
    """The settings in the form that other programs read from a PNG's `parameters` chunk. `ranks`: of the group."""
    negative = [f"Negative prompt: {request.negative_prompt}"] if request.negative_prompt else []
    settings = {
        "Steps": request.steps,
        "Sampler": _SAMPLERS[request.scheduler],
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


def save(image: Any, path: Path, text: str, *, via: Path | None = None) -> None:
    """Write a PIL picture with its `parameters`: same picture, same settings, same bytes. `via` as in `whole_file`.

    Raises OSError.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", text)
    with whole_file(path, via=via) as file:
        image.save(file, format="PNG", pnginfo=info)


def save_all(images: list[Any], path: Path, text: str) -> list[Path]:
    """Save a batch as `x.png`, `x-2.png`, ... and return the paths."""
    paths = [path if n == 0 else path.with_name(f"{path.stem}-{n + 1}{path.suffix}") for n in range(len(images))]
    for image, where in zip(images, paths, strict=True):
        save(image, where, text)
    return paths
