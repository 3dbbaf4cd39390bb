"""GenerationRequest: one picture to make. Frozen, pure, validated, and free of torch; how it is spread over devices
is DistriConfig's business.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import Any

from distri_engine.config import check_bool, check_choice, check_int, check_size

MAX_SEED = 2**32 - 1
MAX_STEPS = 1000  # the noise schedules of SD and SDXL have 1000 training timesteps
MAX_PROMPT = 2000  # characters; the text encoders read 77 tokens of them
MAX_IMAGES = 16


class Scheduler(StrEnum):
    """Samplers, by the names of the command line."""

    DDIM = "ddim"
    EULER = "euler"
    DPM_SOLVER = "dpm-solver"  # DPM-Solver++(2M)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One picture (or a batch of `images`) to make. Raises ValueError with the number, the rule and the remedy."""

    prompt: str
    negative_prompt: str = ""
    height: int | None = None  # pixels; None: the model's own size
    width: int | None = None  # pixels; None: the model's own size
    steps: int = 30  # denoising steps
    guidance_scale: float = 5.0  # classifier-free guidance w; w <= 1 runs the conditional branch only
    seed: int | None = None  # None: drawn by `resolved` before anything is broadcast
    scheduler: Scheduler = Scheduler.DDIM
    images: int = 1  # pictures of the same prompt made in one batch
    metadata: bool = True  # whether files of it carry these settings; the engine writes none
    image: str | None = None  # a picture to start from instead of noise: its file, which rank 0 alone reads
    strength: float = 0.6  # with `image`: the share of the steps that is made; 1 leaves nothing of it

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise ValueError(f"{name} {text!r} is not text")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{name} holds half a character, which is no text; type it again") from None
            if len(text) > MAX_PROMPT:
                raise ValueError(f"{name} has {len(text)} characters, the limit is {MAX_PROMPT}; shorten it")
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what the picture should show")
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_size(name, getattr(self, name)))
        object.__setattr__(self, "steps", check_int("steps", self.steps, 1, MAX_STEPS))
        object.__setattr__(self, "images", check_int("images", self.images, 1, MAX_IMAGES))
        check_bool("metadata", self.metadata)
        scale = self.guidance_scale
        if not isinstance(scale, Real) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale {scale!r} is not a finite number; 5 is usual")
        if not 0 <= scale <= 100:
            raise ValueError(f"guidance_scale {scale} is out of range; give a number from 0 to 100")
        object.__setattr__(self, "guidance_scale", float(scale))
        if self.seed is not None:
            object.__setattr__(self, "seed", check_int("seed", self.seed, 0, MAX_SEED))
        self._check_start()
        object.__setattr__(self, "scheduler", check_choice("scheduler", self.scheduler, Scheduler))

    def _check_start(self) -> None:
        if self.image is not None and (not isinstance(self.image, str) or not self.image or "\0" in self.image):
            raise ValueError(f"image {self.image!r:.80} names no picture file")
        share = self.strength
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"strength {share!r:.80} is out of range; give a number above 0, up to 1")
        object.__setattr__(self, "strength", float(share))
        if self.timesteps < 1:
            enough = math.ceil(100 / self.steps) / 100
            raise ValueError(
                f"strength {self.strength:g} of {self.steps} steps leaves none; raise strength to {enough:g}"
            )

    @property
    def guided(self) -> bool:
        """Whether the UNet runs both guidance branches."""
        return self.guidance_scale > 1

    @property
    def timesteps(self) -> int:
        """Denoising steps that are made: the last `strength` of them if there is a picture to start from."""
        return self.steps if self.image is None else min(int(self.steps * self.strength), self.steps)

    def resolved(self, *, default_size: int) -> GenerationRequest:
        """A copy in which size and seed are numbers: `default_size` pixels a side, and a random seed."""
        return dataclasses.replace(
            self,
            height=default_size if self.height is None else self.height,
            width=default_size if self.width is None else self.width,
            seed=secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
        )

    def replace(self, **changes: Any) -> GenerationRequest:
        """A copy with `changes`, validated again."""
        return dataclasses.replace(self, **changes)
