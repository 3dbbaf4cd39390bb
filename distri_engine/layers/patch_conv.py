"""Convolutions on a band of rows. What lies beyond the band comes from a halo slot, zeros at the picture's edge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from distri_engine.exchange import Exchange
from distri_engine.slots import HaloSlot


def halo_rows(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows that `conv` needs above and below a band whose height is a multiple of its stride."""
    span = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    above = int(conv.padding[0])
    return above, max(0, span - conv.stride[0] - above)


class PatchConv2d:
    """A convolution of kernel > 1 on this rank's rows (DistriFusion, section 4.1)."""

    def __init__(self, conv: nn.Conv2d, slot: HaloSlot) -> None:
        self.conv = conv
        self.slot = slot
        self._zeros = torch.empty(0)  # beyond the picture's edge

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, rows, W] -> [B, C_out, rows / stride, W / stride]."""
        if self.slot.alone:
            return F.conv2d(
                x,
                self.conv.weight,
                self.conv.bias,
                self.conv.stride,
                self.conv.padding,
                self.conv.dilation,
                self.conv.groups,
            )
        above, below = self.slot.trade(x)
        rows_above = self._edge(x, self.slot.above) if above is None else above
        rows_below = self._edge(x, self.slot.below) if below is None else below
        return convolve_rows(self.conv, torch.cat([rows_above, x, rows_below], dim=2))

    @property
    def kept(self) -> tuple[torch.Tensor, ...]:
        """Memory of this layer's own that it reads or writes at every step."""
        return (self._zeros,)

    def _edge(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Zeros, [B, C, rows, W]."""
        shape = (x.shape[0], x.shape[1], max(self.slot.above, self.slot.below), x.shape[3])
        zeros = self._zeros
        if zeros.shape != shape or zeros.dtype != x.dtype or zeros.device != x.device:
            zeros = self._zeros = x.new_zeros(shape)
        return zeros[:, :, :rows]


class SlicedConv2d:
    """The first convolution: every rank has the whole latents, computes its own rows, and exchanges nothing."""

    def __init__(self, conv: nn.Conv2d, exchange: Exchange) -> None:
        self.conv = conv
        self.exchange = exchange

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, H, W], the whole picture -> [B, C_out, own rows, W]."""
        above, below = halo_rows(self.conv)
        box = self.exchange.box
        top, bottom = max(0, box.top - above), min(x.shape[2], box.bottom + below)
        edges = [0, 0, above - (box.top - top), below - (bottom - box.bottom)]
        return convolve_rows(self.conv, F.pad(x[:, :, top:bottom], edges))


def convolve_rows(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """`conv` over rows that already carry their vertical padding."""
    padding = (0, int(conv.padding[1]))
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
