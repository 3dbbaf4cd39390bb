"""GroupNorm on a band of rows: normalises by the moments of the whole picture, which a statistics slot combines."""

from __future__ import annotations

import torch
from torch import nn

from distri_engine.exchange import StatsSlot


class PatchGroupNorm:
    """GroupNorm whose moments come from all bands (DistriFusion, section 4.2, "corrected asynchronous GroupNorm")."""

    def __init__(self, norm: nn.GroupNorm, slot: StatsSlot) -> None:
        self.norm = norm
        self.slot = slot

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, rows, W] or [B, C, tokens], own rows -> the same shape, normalised."""
        norm = self.norm
        own = moments(x, norm.num_groups)
        total = None if self.slot.alone else self.slot.trade(own)
        if total is None:
            return nn.functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        mean, variance = total[0], total[1] - total[0] ** 2
        # Only a corrected average can leave a variance below zero; the own slice's then stands in, the mean stays.
        variance = torch.where(variance < 0, own[1] - own[0] ** 2, variance)
        if self.slot.exchange.config.bessel_correction:
            count = x[0].numel() // norm.num_groups  # of the own slice, as the original has it
            variance = variance * (count / (count - 1))
        return normalise(x, mean, (variance + norm.eps).rsqrt(), norm)


def moments(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Own mean(x) and mean(x^2). x: [B, C, ...] -> [2, B, groups], float64.

    Computed in float32, so that float16 cannot overflow, as mean and variance; kept in float64, because the difference
    mean(x^2) - mean(x)^2 of float32 numbers loses the digits that exactness needs.
    """
    variance, mean = torch.var_mean(x.float().reshape(x.shape[0], groups, -1), dim=-1, correction=0)
    mean, variance = mean.double(), variance.double()
    return torch.stack([mean, variance + mean**2])


def normalise(x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """(x - mean) rstd weight + bias as one multiply-add a channel. mean, rstd: [B, groups]."""
    per_channel = x.shape[1] // norm.num_groups
    scale = rstd.repeat_interleave(per_channel, dim=1)  # [B, C]
    shift = -mean.repeat_interleave(per_channel, dim=1) * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    shape = (*scale.shape, *(1 for _ in x.shape[2:]))
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    return torch.addcmul(shift.to(wide).view(shape), x.to(wide), scale.to(wide).view(shape)).to(x.dtype)
