"""What a method must say: how the picture is cut, what the UNet is fed, and by which plan its layers are patched."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from distri_engine.bands import Box
from distri_engine.config import DistriConfig
from distri_engine.plan import Rule
from distri_engine.step import Step


class Method(ABC):
    """A system of the paper. Stateless: what a picture remembers lives in the exchange."""

    rules: tuple[Rule, ...] = ()  # the plan; none: the model runs as it is
    condition_rules: tuple[Rule, ...] = ()  # the plan of a ControlNet beside it
    alone = False  # one rank does everything; the others rest
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
