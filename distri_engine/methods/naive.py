"""Naive patches: the UNet runs on each patch as if it were a picture of its own (DistriFusion, section 3 and figure
2).
"""

from __future__ import annotations

import torch

from distri_engine.bands import Box, cut_cols, cut_rows
from distri_engine.config import DistriConfig, SplitScheme
from distri_engine.methods.base import Method
from distri_engine.step import Step


class NaivePatch(Method):
    """Patches that never talk: as fast as it gets, and seen in the picture."""

    def boxes(
        self, config: DistriConfig, step: Step, size: tuple[int, int], unit: int, patches: int
    ) -> tuple[Box, ...]:
        """Rows, columns, or rows in even steps and columns in odd ones."""
        scheme = config.split_scheme
        by_rows = scheme is SplitScheme.ROW or (scheme is SplitScheme.ALTERNATE and step.index % 2 == 0)
        return (cut_rows if by_rows else cut_cols)(*size, unit, patches)

    def feed(self, sample: torch.Tensor, box: Box) -> torch.Tensor:
        """The patch alone."""
        return sample[:, :, box.top : box.bottom, box.left : box.right].contiguous()
