"""What a method must say: how the picture is cut, what the UNet is fed, by which plan its layers are patched, and in
which order the timesteps are walked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from distri_engine.bands import Box
from distri_engine.config import DistriConfig
from distri_engine.mesh import Mesh
from distri_engine.plan import Rule
from distri_engine.step import Step

# (latents [n, C, H, W], timestep: one for all, or [n]) -> guided noise prediction [n, C, H, W]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Advance:
    """How far one step of a method brought the picture."""

    latents: torch.Tensor  # [B, C, H, W] after the last converged timestep
    heading: torch.Tensor  # [B, C, H, W] the clean latents that this timestep foresees
    converged: int  # timesteps done, of all
    evaluations: int  # timesteps on which this rank ran the UNet in this step


class Method(ABC):
    """A system of the paper. Stateless: what a picture remembers lives in the exchange."""

    rules: tuple[Rule, ...] = ()  # the plan; none: the model runs as it is
    condition_rules: tuple[Rule, ...] = ()  # the plan of a ControlNet beside it
    alone = False  # one rank does everything; the others rest
    over_time = False  # ranks share timesteps and not the picture: the model is called by itself, not by ParallelUNet
    whole = False  # every rank sees and makes the whole picture of its guidance branch; nothing is cut
    displaced = False  # after warm-up, layers see the peers' values as they were one step ago

    @abstractmethod
    def boxes(
        self, config: DistriConfig, step: Step, size: tuple[int, int], unit: int, patches: int
    ) -> tuple[Box, ...]:
        """The box of latent cells that each of `patches` ranks produces in `step`. size: (rows, columns).

        Raises ValueError if there are more ranks than units of `unit` rows.
        """

    @abstractmethod
    def feed(self, sample: torch.Tensor, box: Box) -> torch.Tensor:
        """What the UNet of the rank that owns `box` sees of sample: [B, C, H, W]."""

    def denoise(
        self,
        latents: torch.Tensor,
        scheduler: Any,
        timesteps: torch.Tensor,
        predict: Predict,
        config: DistriConfig,
        mesh: Mesh,
    ) -> Iterator[Advance]:
        """Walk timesteps: [T], the last ones of `scheduler`, from latents: [B, C, H, W], as noisy as the first of them
        says; here one after another.
        """
        for index, timestep in enumerate(timesteps):
            result = scheduler.step(predict(latents, timestep), timestep, latents)
            latents = result.prev_sample.to(latents.dtype)
            heading = getattr(result, "pred_original_sample", None)
            if heading is None:  # DPM-Solver++ keeps its predictions of the clean latents itself
                heading = scheduler.model_outputs[-1]
            yield Advance(latents=latents, heading=heading, converged=index + 1, evaluations=1)


class WholePicture(Method):
    """What methods that cut nothing have in common."""

    whole = True

    def boxes(
        self, config: DistriConfig, step: Step, size: tuple[int, int], unit: int, patches: int
    ) -> tuple[Box, ...]:
        """Everybody's box is the picture."""
        return (Box(0, size[0], 0, size[1]),) * patches

    def feed(self, sample: torch.Tensor, box: Box) -> torch.Tensor:
        """Everything."""
        return sample
