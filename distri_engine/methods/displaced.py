"""Displaced patch parallelism: bands of rows that see the rest of the picture as it was one step ago (DistriFusion,
section 4). The layers are patched by the plan; in synchronous steps the same plan is exact.
"""

from __future__ import annotations

import torch

from distri_engine.bands import Box, cut_rows
from distri_engine.config import DistriConfig
from distri_engine.methods.base import Method
from distri_engine.plan import CONTROLNET_RULES, DISPLACED_RULES
from distri_engine.step import Step


class DisplacedPatch(Method):
    """DistriFusion."""

    rules = DISPLACED_RULES
    condition_rules = CONTROLNET_RULES
    displaced = True

    def boxes(
        self, config: DistriConfig, step: Step, size: tuple[int, int], unit: int, patches: int
    ) -> tuple[Box, ...]:
        """Bands of rows, at every step the same."""
        return cut_rows(*size, unit, patches)

    def feed(self, sample: torch.Tensor, box: Box) -> torch.Tensor:
        """Everything: the first convolution takes its own rows, with their halo."""
        return sample
