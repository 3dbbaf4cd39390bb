"""One device makes the picture: the oracle of every other method."""

from __future__ import annotations

import torch

from distri_engine.bands import Box
from distri_engine.config import DistriConfig
from distri_engine.methods.base import Method
from distri_engine.step import Step


class Single(Method):
    """The whole picture, unpatched."""

    alone = True
    whole = True

    def boxes(
        self, config: DistriConfig, step: Step, size: tuple[int, int], unit: int, patches: int
    ) -> tuple[Box, ...]:
        """Everybody's box is the picture."""
        return (Box(0, size[0], 0, size[1]),) * patches

    def feed(self, sample: torch.Tensor, box: Box) -> torch.Tensor:
        """Everything."""
        return sample
