"""What does not change while a picture is made is computed once a picture: the text's keys and values, and a
ControlNet's embedding of its conditioning image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from distri_engine.exchange import Exchange
from distri_engine.step import StepClock

Function = Callable[[torch.Tensor], torch.Tensor]


class Seen:
    """Whether a tensor is the one that was there before: the same memory in the same picture, not written to since.
    Of inference mode's own tensors nobody knows the latter, so each of them counts as another one.
    """

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self._picture = -1
        self._last: torch.Tensor | None = None  # kept, so that its memory cannot come back as another one
        self._version = -1

    def again(self, x: torch.Tensor) -> bool:
        """Whether x is what `note` was last told."""
        last = self._last
        return (
            last is not None
            and self._picture == self.clock.picture
            and last.data_ptr() == x.data_ptr()
            and last.shape == x.shape
            and last.stride() == x.stride()
            and self._version == version(x)
            and not x.is_inference()
        )

    def note(self, x: torch.Tensor) -> None:
        """From now on it is x."""
        self._picture, self._last, self._version = self.clock.picture, x, version(x)


class Once:
    """`function` of a tensor that is the same at every step of a picture; computed again when it is not."""

    def __init__(self, function: Function, clock: StepClock) -> None:
        self.function = function
        self.output = torch.empty(0)  # of the last call
        self._seen = Seen(clock)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: any shape -> what `function` makes of it."""
        if not self._seen.again(x):
            self.output = self.function(x)
            self._seen.note(x)
        return self.output

    def knows(self, x: torch.Tensor) -> bool:
        """Whether a call with x would return `output` as it is."""
        return self._seen.again(x)


class ConditionEmbedding:
    """A ControlNet's first layers, which see the conditioning image in pixels: embedded whole, cut to own rows."""

    def __init__(self, embed: Function, exchange: Exchange) -> None:
        self.embed = Once(embed, exchange.clock)
        self.exchange = exchange

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image: [B, 3, 8 H, 8 W], the whole picture -> [B, C, own rows, W]."""
        box = self.exchange.box
        return self.embed(image)[:, :, box.top : box.bottom]


def version(x: torch.Tensor) -> int:
    """Counts writes in place; those to inference mode's own tensors are not counted."""
    return 0 if x.is_inference() else x._version
