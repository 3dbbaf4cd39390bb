"""Attention on a band of rows. Only the projections to keys and values are patched, so that every attention processor,
adapters included, runs as it is: its queries are the band's, its keys and values the picture's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from distri_engine.exchange import GatherSlot
from distri_engine.step import StepClock

Projection = Callable[[torch.Tensor], torch.Tensor]


class GatheredProjection:
    """Self-attention's keys or values: projected from own rows, returned for all rows (DistriFusion, section 4.1)."""

    def __init__(self, project: Projection, slot: GatherSlot) -> None:
        self.project = project
        self.slot = slot

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, own tokens, C_in] -> [B, all tokens, C]."""
        return self.slot.trade(self.project(x))


class TextProjection:
    """Cross-attention's keys or values: the text does not change while a picture is made, so they are computed once."""

    def __init__(self, project: Projection, clock: StepClock) -> None:
        self.project = project
        self.clock = clock
        self._picture = -1
        self._text: torch.Tensor | None = None  # kept, so that its memory cannot come back as another text
        self._version = -1
        self._projected = torch.empty(0)

    def __call__(self, text: torch.Tensor) -> torch.Tensor:
        """text: [B, text tokens, C_in] -> [B, text tokens, C]."""
        version = 0 if text.is_inference() else text._version  # counts writes in place
        kept = self._text
        if (
            kept is None
            or self._picture != self.clock.picture
            or kept.data_ptr() != text.data_ptr()
            or kept.shape != text.shape
            or self._version != version
        ):
            self._projected = self.project(text)
            self._picture, self._text, self._version = self.clock.picture, text, version
        return self._projected
