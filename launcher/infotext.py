"""The settings of a picture as the text that other programs keep in a PNG's `parameters` chunk: written, and read as
far as it is understood. Which file carries it, and what else does, is png.py's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distri_engine.bands import used_ranks
from distri_engine.config import AUTO, DistriConfig, Parallelism, SyncMode, check_factors
from distri_engine.request import GenerationRequest

MAX_SETTINGS = 4000  # characters of the line of settings
SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpm-solver": "DPM++ 2M"}
_NEGATIVE = "Negative prompt: "
_SETTING = re.compile(r'([A-Z][\w /+-]{0,40}): ("(?:[^"\\]|\\.)*"|[^,]*)(?:, |$)')


def write(request: GenerationRequest, config: DistriConfig, *, model: str, ranks: int) -> str:
    """Prompt, negative prompt, and one line of settings, as A1111's web UI writes them. `ranks`: of the group."""
    negative = [f"{_NEGATIVE}{request.negative_prompt}"] if request.negative_prompt else []
    settings = {
        "Steps": request.steps,
        "Sampler": SAMPLERS[request.scheduler],
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        **({} if request.image is None else {"Denoising strength": f"{request.strength:g}"}),
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


@dataclass
class Understood:
    """What a text says, field by field, as GenerationRequest and DistriConfig accept it."""

    request: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # a sentence for each part that cannot be used

    def take(
        self, fields: dict[str, Any], judge: Callable[..., Any], settings: Mapping[str, str], wanted: Fields
    ) -> None:
        """Put those of `wanted` that `judge`, a dataclass's replace, accepts into `fields`, and note the others."""
        for title, name, convert in wanted:
            word = settings.get(title)
            if word is None:
                continue
            try:
                value = convert(word)
            except (ValueError, LookupError):
                self.problems.append(f"{title} {word[:40]!r} is not known here.")
                continue
            try:
                judge(**{name: value})
            except ValueError as error:
                said = str(error)
                self.problems.append(f"{said[:1].upper()}{said[1:]}.")
            else:
                fields[name] = value


def read(text: str) -> Understood:
    """What this text, of ours or of another program, asks for. Raises ValueError if it is no such text."""
    lines = text.split("\n")
    ends = [number for number, line in enumerate(lines) if line.startswith("Steps: ")]
    if not ends:
        raise ValueError("it has no line of settings that begins with Steps")
    words, settings = lines[: ends[-1]], dict(_SETTING.findall(lines[ends[-1]][:MAX_SETTINGS]))
    begin = next((number for number, line in enumerate(words) if line.startswith(_NEGATIVE)), len(words))
    settings["Negative prompt"] = "\n".join(words[begin:]).removeprefix(_NEGATIVE).strip()
    request = GenerationRequest(prompt="\n".join(words[:begin]).strip())
    found = Understood(request={"prompt": request.prompt})
    found.take(found.request, request.replace, settings, _REQUEST)
    if ("width" in found.request) != ("height" in found.request):  # half a size is none
        found.request.pop("width", None)
        found.request.pop("height", None)
    if "Parallelism" in settings:  # else another program's, which may mean something else by the same words
        found.take(found.config, DistriConfig().replace, settings, _CONFIG)
    return found


def _flag(word: str) -> bool:
    return {"True": True, "False": False}[word]


def _sampler(word: str) -> str:
    return {title: name for name, title in SAMPLERS.items()}[word]


def _warmup(word: str) -> int | str:
    return AUTO if word == AUTO else int(word)


def _factors(word: str) -> tuple[float, ...]:
    return tuple(map(float, word.split()))


Fields = tuple[tuple[str, str, Callable[[str], Any]], ...]  # (title in the text, field, how to read it)

_REQUEST: Fields = (
    ("Negative prompt", "negative_prompt", str),
    ("Steps", "steps", int),
    ("Sampler", "scheduler", _sampler),
    ("CFG scale", "guidance_scale", float),
    ("Seed", "seed", int),
    ("Size", "width", lambda word: int(word.split("x")[0])),
    ("Size", "height", lambda word: int(word.split("x")[1])),
)
_CONFIG: Fields = (
    ("Parallelism", "parallelism", str),
    ("Mode", "mode", str),
    ("Warm-up", "warmup_steps", _warmup),
    ("Split scheme", "split_scheme", str),
    ("Split batch", "split_batch", _flag),
    ("Extrapolation", "extrapolation", _factors),
    ("Extrapolation memory", "extrapolation_memory", _factors),
    ("Picard window", "picard_window", int),
    ("Picard tolerance", "picard_tolerance", float),
)
