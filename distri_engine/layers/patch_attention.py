"""Attention on a band of rows. Only the projections to keys and values are patched, so that every attention processor,
adapters included, runs as it is: its queries are the band's, its keys and values the picture's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from distri_engine.slots import GatherSlot

Projection = Callable[[torch.Tensor], torch.Tensor]


class GatheredProjection:
    """Self-attention's keys or values: projected from own rows, returned for all rows (DistriFusion, section 4.1)."""

    def __init__(self, project: Projection, slot: GatherSlot) -> None:
        self.project = project
        self.slot = slot

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, own tokens, C_in] -> [B, all tokens, C]."""
        return self.slot.trade(self.project(x))
